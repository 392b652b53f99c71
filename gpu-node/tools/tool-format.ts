/**
 * How models write tool calls. A model was trained on one of these, and its chat template shows which; a model whose template
 * knows no tools is asked to write Hermes' format (tool-prompt.ts).
 *
 *   hermes   <tool_call>\n{"name": "f", "arguments": {…}}\n</tool_call>, one block a call; Qwen, Hermes, SmolLM, Granite
 *   llama    {"name": "f", "parameters": {…}} as the whole answer, `;` between calls; Llama 3
 *   mistral  [TOOL_CALLS][{"name": "f", "arguments": {…}}, …]; Mistral
 */

export interface ToolFormat {
  name: 'hermes' | 'llama' | 'mistral'
  argumentsKey: 'arguments' | 'parameters'
  /** Begins calls anywhere in the text. Empty: calls begin the text or there are none. */
  open: string
  /** Ends one call. */
  close: string
  /** The calls are items of a JSON array. */
  inArray: boolean
  /** Between two calls after one `open`; empty: each has its own. */
  separator: string
}

const HERMES: ToolFormat = {
  name: 'hermes',
  argumentsKey: 'arguments',
  open: '<tool_call>',
  close: '</tool_call>',
  inArray: false,
  separator: '',
}

const LLAMA: ToolFormat = {
  name: 'llama',
  argumentsKey: 'parameters',
  open: '',
  close: '',
  inArray: false,
  separator: ';',
}

const MISTRAL: ToolFormat = {
  name: 'mistral',
  argumentsKey: 'arguments',
  open: '[TOOL_CALLS]',
  close: '',
  inArray: true,
  separator: ',',
}

/** `templates`: sources of the model's chat templates. */
export function detectToolFormat(templates: Iterable<string>): ToolFormat {
  const source = [...templates].join('\n')
  if (source.includes(HERMES.open)) {
    return HERMES
  }
  if (source.includes(MISTRAL.open)) {
    return MISTRAL
  }
  const saysLlama = /\{\s*\\?"name\\?":\s*function name,\s*\\?"parameters\\?"/.test(source)
  return saysLlama || source.includes('<|python_tag|>') ? LLAMA : HERMES
}

/** Texts that a tokenizer may hold as special tokens, which are otherwise no part of the visible text. */
export function formatMarkers(format: ToolFormat): string[] {
  return [format.open, format.close].filter((marker) => marker !== '')
}
