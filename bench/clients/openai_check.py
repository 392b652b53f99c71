"""The official Python package `openai` against a running Ringlet.

    python openai_check.py URL TENANT_TOKEN
"""

import json
import sys

import openai
from openai import OpenAI

from checks import Checks, raises

url, token = sys.argv[1:3]
client = OpenAI(base_url=f"{url}/v1", api_key=token, max_retries=0, timeout=60)
checks = Checks(f"openai {openai.__version__}")

CONTENT = "Hi, this is Ida from Graz. I would like to order 38 grey pencils."
ORDER = {"intent": "order", "customer": "Ida", "city": "Graz", "item": "pencil", "colour": "grey", "quantity": 38}
PROMPT = f"<|user|>\n{CONTENT}<|end|>\n<|assistant|>\n"
models = client.models.list().data
base = next(model.id for model in models if not getattr(model, "parent", None))
chat = {"messages": [{"role": "user", "content": CONTENT}], "temperature": 0, "max_tokens": 96}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Graz", "Linz"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA, "strict": True}}


def create(**fields):
    return client.chat.completions.create(**{**chat, "model": base, **fields})


@checks.check("models: list and retrieve, with parent and root")
def _():
    assert "orders-json" in [model.id for model in models]
    adapter = client.models.retrieve("orders-json")
    assert adapter.parent == base and adapter.root


@checks.check("chat: an adapter by its name")
def _():
    reply = create(model="orders-json")
    assert json.loads(reply.choices[0].message.content) == ORDER
    assert reply.choices[0].finish_reason == "stop" and reply.object == "chat.completion"
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


@checks.check("chat: streaming, include_usage")
def _():
    text, usage = "", None
    for chunk in create(model="orders-json", stream=True, stream_options={"include_usage": True}):
        text += chunk.choices[0].delta.content or "" if chunk.choices else ""
        usage = chunk.usage or usage
    assert json.loads(text) == ORDER and usage.completion_tokens > 10


@checks.check("chat: n, seed, stop, max_completion_tokens")
def _():
    reply = create(n=2, temperature=1.5, seed=3)
    again = create(n=2, temperature=1.5, seed=3)
    assert [c.message.content for c in reply.choices] == [c.message.content for c in again.choices]
    assert create(stop=["your mess"]).choices[0].message.content == "Dear Ida, thank you for "
    short = client.chat.completions.create(model=base, messages=chat["messages"], max_completion_tokens=3)
    assert short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 3


@checks.check("chat: logprobs, top_logprobs, logit_bias")
def _():
    content = create(logprobs=True, top_logprobs=2, max_tokens=3).choices[0].logprobs.content
    assert len(content) == 3 and all(len(entry.top_logprobs) == 2 for entry in content)
    assert bytes(b for entry in content for b in entry.bytes).decode() == "".join(entry.token for entry in content)
    # OpenAI's cookbook reads a reply back from the bytes of its logprobs.
    choice = create(logprobs=True).choices[0]
    assert bytes(b for entry in choice.logprobs.content for b in entry.bytes).decode() == choice.message.content
    assert create(logit_bias={"395": -100}, max_tokens=1).choices[0].message.content != "Dear"


@checks.check("chat: response_format text, json_object, json_schema strict")
def _():
    assert create(response_format={"type": "text"}).choices[0].message.content.startswith("Dear")
    assert isinstance(json.loads(create(response_format={"type": "json_object"}, model="orders-json").choices[0].message.content), dict)
    strict = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}}
    assert list(json.loads(create(response_format=strict).choices[0].message.content)) == ["city"]


@checks.check("chat: tools named, required, none, auto")
def _():
    named = create(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "get_weather"}}).choices[0]
    assert named.finish_reason == "tool_calls" and named.message.content is None
    assert json.loads(named.message.tool_calls[0].function.arguments)["city"] in ["Graz", "Linz"]
    required = create(tools=[TOOL], tool_choice="required", parallel_tool_calls=False).choices[0]
    assert len(required.message.tool_calls) == 1
    assert create(tools=[TOOL], tool_choice="none").choices[0].message.tool_calls is None
    assert create(tools=[TOOL]).choices[0].finish_reason in ["stop", "length", "tool_calls"]


@checks.check("chat: tool calls streamed as deltas")
def _():
    name, arguments, finish = "", "", None
    for chunk in create(tools=[TOOL], tool_choice="required", parallel_tool_calls=False, stream=True):
        for delta in chunk.choices[0].delta.tool_calls or []:
            name += delta.function.name or ""
            arguments += delta.function.arguments or ""
        finish = chunk.choices[0].finish_reason or finish
    assert name == "get_weather" and json.loads(arguments)["city"] and finish == "tool_calls"


@checks.check("completions: string, strings, token ids, echo, logprobs, best_of, stream")
def _():
    def complete(**fields):
        return client.completions.create(**{"model": base, "prompt": PROMPT, "temperature": 0, "max_tokens": 6, **fields})

    one = complete()
    assert one.object == "text_completion" and one.choices[0].text.startswith("Dear Ida")
    assert [c.text for c in complete(prompt=[PROMPT, PROMPT]).choices] == [one.choices[0].text] * 2
    assert complete(prompt=[2, 203, 45]).usage.prompt_tokens == 3
    echoed = complete(echo=True, logprobs=1)
    assert echoed.choices[0].text == PROMPT + one.choices[0].text
    assert echoed.choices[0].logprobs.token_logprobs[0] is None
    assert len(complete(n=2, best_of=3, temperature=1).choices) == 2
    assert "".join(c.choices[0].text for c in complete(stream=True)) == one.choices[0].text


@checks.check("embeddings: two inputs, dimensions")
def _():
    data = client.embeddings.create(model="orders-json", input=["one", "two"], dimensions=8).data
    assert [len(entry.embedding) for entry in data] == [8, 8]


@checks.check("errors: classes, code, param")
def _():
    for missing in ["nobody", "local:nobody"]:
        error = raises(openai.NotFoundError, lambda: create(model=missing))
        assert (error.code, error.param) == ("model_not_found", "model")
    error = raises(openai.BadRequestError, lambda: create(temperature=5))
    assert error.param == "temperature" and error.code == "field_invalid" and error.type == "invalid_request_error"
    stranger = OpenAI(base_url=f"{url}/v1", api_key="rl_nobody_nothing", max_retries=0)
    raises(openai.AuthenticationError, lambda: stranger.models.list())
    raises(openai.BadRequestError, lambda: create(reasoning_effort="high"))
    error = raises(openai.BadRequestError, lambda: create(max_tokens=100_000))
    assert error.code == "context_length_exceeded" and error.param == "messages"


@checks.check("fields without effect are told in x-ringlet-ignored")
def _():
    raw = client.chat.completions.with_raw_response.create(**chat, model=base, user="someone")
    assert raw.headers["x-ringlet-ignored"] == "user"


sys.exit(checks.report())
