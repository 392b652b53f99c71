"""lorax-client (0.6.3, unchanged) against a running Ringlet: every call of the package, every adapter source.

    python lorax_client_check.py URL TENANT_TOKEN [SOURCES.json]

SOURCES.json lists further adapters: [{"source": "hub", "id": "org/name", "token": "..."}]; run.ts writes one.
"""

import asyncio
import json
import sys

from lorax import AsyncClient, Client, MergedAdapters
from lorax.errors import GenerationError, NotFoundError, UnknownError, ValidationError

from checks import Checks, raises

url, token = sys.argv[1:3]
sources = json.load(open(sys.argv[3])) if len(sys.argv) > 3 else []
headers = {"Authorization": f"Bearer {token}"}
client = Client(url, headers=headers, timeout=60)
async_client = AsyncClient(url, headers=headers, timeout=60)
checks = Checks("lorax-client 0.6.3")

PROMPT = "<|user|>\nHi, this is Ida from Graz. I would like to order 38 grey pencils.<|end|>\n<|assistant|>\n"
ORDER = {"intent": "order", "customer": "Ida", "city": "Graz", "item": "pencil", "colour": "grey", "quantity": 38}
LOCAL = {"adapter_id": "orders-json", "adapter_source": "local", "max_new_tokens": 96}


@checks.check("Client.generate: the base model")
def _():
    assert client.generate(PROMPT, max_new_tokens=64).generated_text.startswith("Dear Ida")


@checks.check("Client.generate: adapter_source local")
def _():
    assert json.loads(client.generate(PROMPT, **LOCAL).generated_text) == ORDER


@checks.check("Client.generate: an alias")
def _():
    assert json.loads(client.generate(PROMPT, adapter_id="orders-json", max_new_tokens=96).generated_text) == ORDER


for source in sources:

    @checks.check(f"Client.generate: adapter_source {source['source']}")
    def _(source=source):
        text = client.generate(
            PROMPT,
            adapter_id=source["id"],
            adapter_source=source["source"],
            api_token=source.get("token"),
            max_new_tokens=96,
        ).generated_text
        assert json.loads(text) == ORDER

    if source.get("token"):

        @checks.check(f"Client.generate: adapter_source {source['source']} without its token")
        def _(source=source):
            raises(
                (NotFoundError, UnknownError),
                lambda: client.generate(PROMPT, adapter_id=source["id"], adapter_source=source["source"]),
            )


@checks.check("Client.generate: details")
def _():
    details = client.generate(PROMPT, details=True, **LOCAL).details
    assert details.finish_reason.value == "eos_token"
    assert details.generated_tokens == len(details.tokens) > 10
    assert details.prompt_tokens == 25 or details.prompt_tokens > 10
    assert details.seed is None


@checks.check("Client.generate: decoder_input_details")
def _():
    details = client.generate(PROMPT, decoder_input_details=True, max_new_tokens=1).details
    assert details.prefill[0].logprob is None and details.prefill[1].logprob < 0
    assert "".join(token.text for token in details.prefill) == PROMPT


@checks.check("Client.generate: best_of")
def _():
    details = client.generate(PROMPT, best_of=2, do_sample=True, temperature=1.5, details=True, max_new_tokens=8).details
    assert len(details.best_of_sequences) == 1


@checks.check("Client.generate: return_k_alternatives")
def _():
    token = client.generate(PROMPT, return_k_alternatives=3, details=True, max_new_tokens=2).details.tokens[0]
    assert [alternative.id for alternative in token.alternative_tokens][0] == token.id
    assert len(token.alternative_tokens) == 3


@checks.check("Client.generate: stop sequences stay in the text")
def _():
    response = client.generate(PROMPT, stop_sequences=["for your"], details=True, max_new_tokens=64)
    assert response.generated_text == "Dear Ida, thank you for your"
    assert response.details.finish_reason.value == "stop_sequence"


@checks.check("Client.generate: seed, temperature, top_k, top_p, typical_p, repetition_penalty, watermark")
def _():
    def ask():
        return client.generate(
            PROMPT,
            do_sample=True,
            seed=7,
            temperature=1.3,
            top_k=40,
            top_p=0.95,
            typical_p=0.95,
            repetition_penalty=1.05,
            watermark=True,
            max_new_tokens=24,
            details=True,
        )

    first, second = ask(), ask()
    assert first.generated_text == second.generated_text
    assert first.details.seed == 7


@checks.check("Client.generate: return_full_text, truncate, ignore_eos_token")
def _():
    assert client.generate(PROMPT, return_full_text=True, max_new_tokens=4).generated_text.startswith(PROMPT)
    long = "words " * 300 + PROMPT
    assert client.generate(long, truncate=25, max_new_tokens=24).generated_text.startswith("Dear Ida")
    assert client.generate(PROMPT, ignore_eos_token=True, max_new_tokens=60, details=True).details.generated_tokens == 60


@checks.check("Client.generate: MergedAdapters, all four strategies")
def _():
    for strategy in ["linear", "ties", "dare_linear", "dare_ties"]:
        merged = MergedAdapters(
            ids=["orders-json", "pirate"],
            weights=[1.0, 0.5],
            merge_strategy=strategy,
            density=0.8,
            majority_sign_method="total",
        )
        text = client.generate(PROMPT, merged_adapters=merged, adapter_source="local", max_new_tokens=16).generated_text
        assert text != ""


@checks.check("Client.generate: response_format with a schema")
def _():
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Graz", "Linz"]}, "quantity": {"type": "integer", "maximum": 99}},
        "required": ["city", "quantity"],
    }
    response = client.generate(
        PROMPT, response_format={"type": "json_object", "schema": schema}, max_new_tokens=64, details=True
    )
    assert set(json.loads(response.generated_text)) == {"city", "quantity"}


@checks.check("Client.generate_stream: the tokens join to the text")
def _():
    events = list(client.generate_stream(PROMPT, details=True, **LOCAL))
    text = "".join(event.token.text for event in events if not event.token.special)
    assert json.loads(text) == ORDER
    assert events[-1].generated_text == text
    assert events[-1].details.generated_tokens == len(events)
    assert all(event.generated_text is None for event in events[:-1])


@checks.check("Client.generate_stream: response_format")
def _():
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    events = list(client.generate_stream(PROMPT, response_format={"type": "json_object", "schema": schema}))
    assert isinstance(json.loads(events[-1].generated_text)["ok"], bool)


@checks.check("Client.embed")
def _():
    assert len(client.embed("Hello, world!").embeddings) > 100


@checks.check("AsyncClient.generate, generate_stream, embed")
def _():
    async def run():
        whole = await async_client.generate(PROMPT, **LOCAL)
        last = None
        async for event in async_client.generate_stream(PROMPT, **LOCAL):
            last = event
        embedded = await async_client.embed("Hello")
        return whole.generated_text, last.generated_text, len(embedded.embeddings)

    whole, streamed, size = asyncio.run(run())
    assert whole == streamed and json.loads(whole) == ORDER and size > 100


@checks.check("AsyncClient: 24 calls at once with five adapters")
def _():
    async def run():
        names = ["orders-json", "orders-sql", "redact", "triage", "pirate", None]
        calls = [async_client.generate(PROMPT, adapter_id=names[i % 6], max_new_tokens=48) for i in range(24)]
        return [response.generated_text for response in await asyncio.gather(*calls)]

    texts = asyncio.run(run())
    assert len(set(texts)) == 6 and all(texts[i] == texts[i % 6] for i in range(24))


@checks.check("errors: ValidationError with LoRAX's words")
def _():
    error = raises(ValidationError, lambda: client.generate(PROMPT, max_new_tokens=1_000_000))
    assert "`inputs` tokens + `max_new_tokens` must be <=" in str(error)
    error = raises(ValidationError, lambda: client.generate(PROMPT, stop_sequences=list("abcdef")))
    assert "`stop` supports up to 4 stop sequences. Given: 6" in str(error)
    raises(ValidationError, lambda: list(client.generate_stream(PROMPT, max_new_tokens=1_000_000)))


@checks.check("errors: NotFoundError for an adapter that is not there")
def _():
    raises(NotFoundError, lambda: client.generate(PROMPT, adapter_id="nobody"))
    raises(NotFoundError, lambda: list(client.generate_stream(PROMPT, adapter_id="nobody")))


@checks.check("errors: a wrong token")
def _():
    stranger = Client(url, headers={"Authorization": "Bearer rl_nobody_nothing"}, timeout=10)
    raises(UnknownError, lambda: stranger.generate(PROMPT))


@checks.check("errors: an invalid schema is its caller's ValidationError")
def _():
    bad = {"type": "json_object", "schema": {"type": "nonsense"}}
    raises((ValidationError, GenerationError), lambda: client.generate(PROMPT, response_format=bad))


sys.exit(checks.report())
