/** A prompt as asked to the tokens that the model reads, with the length rules of the route's API. */

import { setImmediate as otherWork } from 'node:timers/promises'
import type { GenerateRequest, PromptInput } from '../../shared/api/generate-request.ts'
import { RingletError } from '../../shared/errors.ts'
import type { CallerTextEncoder, EncodeText, TextCaller } from '../text/caller-text-encoder.ts'
import type { ChatTemplate } from '../text/chat-template.ts'
import type { Tokenizer } from '../text/tokenizer.ts'
import type { ToolFormat } from '../tools/tool-format.ts'
import { withToolsAsText } from '../tools/tool-prompt.ts'

export interface PromptLimits {
  /** Prompt and generated tokens together. */
  maxPositions: number
  vocabSize: number
  /** From the ticket; lowers what is asked without an error. */
  maxNewTokens: number | undefined
  /** Where the route's body has the prompt: errors name it, and speak as its API does. */
  promptField: PromptField
}

/** LoRAX's first; the others are OpenAI's. */
export type PromptField = 'inputs' | 'prompt' | 'messages' | 'input'

export interface PreparedPrompt {
  tokens: Int32Array
  /** What `echo` puts in front of the answer. */
  text: string
  maxNewTokens: number
}

export interface PromptParts {
  tokenizer: Tokenizer
  textEncoder: CallerTextEncoder
  chatTemplate: ChatTemplate | undefined
  toolFormat: ToolFormat
}

type Lengths = Pick<GenerateRequest, 'maxNewTokens' | 'truncate' | 'toolUse'>

interface Encoding extends PromptParts {
  encode: EncodeText
}

/** Encoding many prompts takes seconds: streams go on between them, and a client that leaves ends it. */
export async function preparePrompts(
  prompts: readonly PromptInput[],
  request: Lengths,
  limits: PromptLimits,
  parts: PromptParts,
  caller: TextCaller,
): Promise<PreparedPrompt[]> {
  const encoding = { ...parts, encode: parts.textEncoder.forRequest(caller) }
  const prepared: PreparedPrompt[] = []
  for (const prompt of prompts) {
    if (prepared.length > 0) {
      await otherWork()
      caller.signal.throwIfAborted()
    }
    prepared.push(await preparePrompt(prompt, request, limits, encoding))
  }
  return prepared
}

async function preparePrompt(
  prompt: PromptInput,
  request: Lengths,
  limits: PromptLimits,
  encoding: Encoding,
): Promise<PreparedPrompt> {
  const maxPromptTokens = limits.maxPositions - 1
  const { truncate } = request
  if (truncate !== undefined && (truncate <= 0 || truncate > maxPromptTokens)) {
    const message = `\`truncate\` must be strictly positive and less than ${maxPromptTokens}. Given: ${truncate}`
    throw new RingletError('field_invalid', message, { param: 'parameters.truncate' })
  }
  const encoded = await encodePrompt(prompt, request, limits, encoding)
  const tokens = truncate === undefined ? encoded.tokens : encoded.tokens.slice(-truncate)
  const count = tokens.length
  if (count === 0) {
    throw new RingletError('field_invalid', `\`${limits.promptField}\` cannot be empty`, { param: limits.promptField })
  }
  checkLength(count, request, limits)
  const asked = request.maxNewTokens
  const room = limits.maxPositions - count
  return {
    tokens: Int32Array.from(tokens),
    text: encoded.text,
    maxNewTokens: Math.min(asked ?? room, limits.maxNewTokens ?? room),
  }
}

function checkLength(count: number, { maxNewTokens: asked }: Lengths, limits: PromptLimits): void {
  if (asked !== undefined && count + asked > limits.maxPositions) {
    throw tooLong(limits, String(count), asked)
  }
  if (count > limits.maxPositions - 1) {
    throw tooLong(limits, String(count))
  }
}

/** `asked`: new tokens, where they are what is too much. OpenAI's words are those that its clients search for. */
function tooLong({ maxPositions, promptField }: PromptLimits, count: string, asked?: number): RingletError {
  const param = { param: promptField }
  if (promptField !== 'inputs') {
    const more = asked === undefined ? '' : `, and ${asked} more were asked for in the completion`
    const message = `This model's maximum context length is ${maxPositions} tokens. However, your ${promptField} resulted in ${count} tokens${more}. Please reduce the length.`
    return new RingletError('prompt_too_long', message, param)
  }
  const message =
    asked === undefined
      ? `\`inputs\` must have less than ${maxPositions - 1} tokens. Given: ${count}`
      : `\`inputs\` tokens + \`max_new_tokens\` must be <= ${maxPositions}. Given: ${count} \`inputs\` tokens and ${asked} \`max_new_tokens\``
  return new RingletError('prompt_too_long', message, param)
}

async function encodePrompt(
  prompt: PromptInput,
  request: Lengths,
  limits: PromptLimits,
  encoding: Encoding,
): Promise<{ tokens: number[]; text: string }> {
  switch (prompt.kind) {
    case 'text':
      return { tokens: await encodeText(prompt.text, true, request.truncate, limits, encoding), text: prompt.text }
    case 'tokens': {
      const unknown = prompt.tokens.find((id) => id >= limits.vocabSize)
      if (unknown !== undefined) {
        const message = `token id ${unknown} is not in the vocabulary of ${limits.vocabSize}`
        throw new RingletError('field_invalid', message, { param: limits.promptField })
      }
      if (request.truncate === undefined) {
        // Before millions of them are made text.
        checkLength(prompt.tokens.length, request, limits)
      }
      return { tokens: prompt.tokens, text: encoding.tokenizer.decode(prompt.tokens, true) }
    }
    case 'chat': {
      if (encoding.chatTemplate === undefined) {
        throw new RingletError('template_failed', 'this model has no chat template; use a completion route')
      }
      const { readsTools } = encoding.chatTemplate
      const { toolUse } = request
      const text = encoding.chatTemplate.render({
        messages: readsTools ? prompt.messages : withToolsAsText(prompt.messages, toolUse, encoding.toolFormat),
        tools: readsTools && toolUse !== undefined && toolUse.choice.kind !== 'none' ? toolUse.tools : [],
        variables: prompt.templateVariables,
      })
      // The template writes its own special tokens.
      return { tokens: await encodeText(text, false, request.truncate, limits, encoding), text }
    }
  }
}

/** A text of more characters than this for each token that fits is looked at in part first: words take three to six. */
const LONG_CHARACTERS_PER_TOKEN = 16
/** How far a cut in the text can change the tokens beside it. */
const CUT_SLACK_TOKENS = 16

/**
 * Of a text that is far too long only as much is encoded as shows it, and nothing where its length alone does; with `truncate`
 * only its end, which is what counts.
 */
async function encodeText(
  text: string,
  addSpecialTokens: boolean,
  truncate: number | undefined,
  limits: PromptLimits,
  { encode, tokenizer }: Encoding,
): Promise<number[]> {
  const wanted = truncate ?? limits.maxPositions
  const fewest = Math.ceil(text.length / tokenizer.mostCharactersPerToken)
  if (truncate === undefined && fewest > limits.maxPositions) {
    throw tooLong(limits, `more than ${fewest - 1}`)
  }
  const characters = LONG_CHARACTERS_PER_TOKEN * (wanted + CUT_SLACK_TOKENS)
  if (text.length > characters) {
    const part = truncate === undefined ? text.slice(0, characters) : text.slice(-characters)
    const tokens = await encode(part, addSpecialTokens && truncate === undefined)
    if (tokens.length > wanted + CUT_SLACK_TOKENS) {
      if (truncate !== undefined) {
        return tokens
      }
      throw tooLong(limits, `more than ${tokens.length}`)
    }
  }
  return encode(text, addSpecialTokens)
}
