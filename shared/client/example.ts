/**
 * The client at work against a running Ringlet: one answer, one stream, one adapter beside another.
 *
 *   npm start            (in another terminal)
 *   npx tsx shared/client/example.ts http://127.0.0.1:8787 rl_…
 */

import { createRingletClient } from './ringlet-client.ts'

const [baseUrl, token] = process.argv.slice(2)
if (baseUrl === undefined || token === undefined) {
  console.error('usage: tsx shared/client/example.ts URL TENANT_TOKEN')
  process.exit(2)
}
const ringlet = createRingletClient({ baseUrl, token })

const { data } = await ringlet.models()
console.log('models:', data.map((model) => model.id).join(', '))

const content = 'Please send 3 red lamps to Anna in Berlin.'
const messages = [{ role: 'user' as const, content }]
for (const { id } of data.slice(0, 3)) {
  process.stdout.write(`\n${id}: `)
  const onProgress = (progress: object) => process.stderr.write(`${JSON.stringify(progress)} `)
  for await (const chunk of ringlet.chatStream(
    { model: id, messages, temperature: 0, max_tokens: 80 },
    { onProgress },
  )) {
    process.stdout.write(chunk.choices[0]?.delta.content ?? '')
  }
}

const { generated_text } = await ringlet.generate({
  inputs: `<|user|>\n${content}<|end|>\n<|assistant|>\n`,
  parameters: { adapter_id: data[1]?.id ?? null, max_new_tokens: 80 },
})
console.log(`\n\n/generate: ${generated_text}`)
