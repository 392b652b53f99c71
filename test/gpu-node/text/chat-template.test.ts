import { readFile } from 'node:fs/promises'
import { describe, expect, test } from 'vitest'
import { createChatTemplate } from '../../../gpu-node/text/chat-template.ts'
import { readTokenizerFiles } from '../../../gpu-node/text/tokenizer-files.ts'
import type { ChatMessage } from '../../../shared/api/generate-request.ts'

const templateOf = (...sources: [name: string, source: string][]) => {
  const template = createChatTemplate({ templates: new Map(sources), bosText: '<s>', eosText: '</s>' })
  if (template === undefined) {
    throw new Error('no template')
  }
  return template
}
const user = (content: string): ChatMessage => ({ role: 'user', content })
const render = (source: string, messages: ChatMessage[] = [user('Hi')]) =>
  templateOf(['default', source]).render({ messages, tools: [], variables: {} })

describe('a chat template', () => {
  test('renders the golden messages to the prompts of transformers', async () => {
    const golden = JSON.parse(await readFile('models/demo/golden.json', 'utf8')) as {
      messages: string[]
      prompts: string[]
    }
    const { chatTemplates } = await readTokenizerFiles('models/demo/base')
    const template = templateOf(...chatTemplates)
    const prompts = golden.messages.map((text) => template.render({ messages: [user(text)], tools: [], variables: {} }))
    expect(prompts).toEqual(golden.prompts)
  })

  test('has the variables and functions of transformers', () => {
    expect(render('{{ bos_token }}{{ messages[0].content }}{{ eos_token }}')).toBe('<s>Hi</s>')
    expect(render("{{ strftime_now('%d %B %Y') }}")).toMatch(/^\d\d \p{L}+ 20\d\d$/u)
  })

  test('its own complaint is the caller’s error', () => {
    expect(() => render("{{ raise_exception('roles must alternate') }}")).toThrow('roles must alternate')
    try {
      render("{{ raise_exception('no') }}")
    } catch (error) {
      expect(error).toMatchObject({ code: 'template_failed', param: 'messages' })
    }
  })

  test('sees call arguments as objects', () => {
    const call = { id: '1', type: 'function' as const, function: { name: 'f', arguments: '{"x": 1}' } }
    const messages = [{ role: 'assistant', content: null, tool_calls: [call] }]
    expect(render('{{ messages[0].tool_calls[0].function.arguments.x + 1 }}', messages)).toBe('2')
  })

  test('a template that knows no `developer` sees `system`', () => {
    expect(render('{{ messages[0].role }}', [{ role: 'developer', content: 'x' }])).toBe('system')
  })

  test('with tools the named template is used', () => {
    const template = templateOf(['default', 'plain'], ['tool_use', '{{ tools[0].function.name }}'])
    const tools = [{ type: 'function' as const, function: { name: 'f' } }]
    expect(template.readsTools).toBe(true)
    expect(template.render({ messages: [user('x')], tools, variables: {} })).toBe('f')
    expect(template.render({ messages: [user('x')], tools: [], variables: {} })).toBe('plain')
  })

  test('further variables reach the template and cannot replace the messages', () => {
    const template = templateOf(['default', '{{ enable_thinking }}{{ messages[0].content }}'])
    const variables = { enable_thinking: 'yes', messages: 'stolen' }
    expect(template.render({ messages: [user('x')], tools: [], variables })).toBe('yesx')
  })

  test('broken source is the operator’s error', () => {
    expect(() => templateOf(['default', '{% for %}'])).toThrow('does not parse')
  })
})
