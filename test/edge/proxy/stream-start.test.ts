/** Streams whose headers went out before their adapter was loaded say later who answers, and what the prompt came to. */

import { expect, test } from 'vitest'
import { createEventFramer, StreamGapError, type StreamProgress } from '../../../edge/proxy/event-framer.ts'

function take(text: string, progress: StreamProgress): string {
  const framer = createEventFramer(progress)
  return new TextDecoder().decode(Buffer.concat(framer.push(new TextEncoder().encode(text))))
}

test('the adapter and the prompt’s tokens are learnt from the stream', () => {
  const progress: StreamProgress = { delivered: {}, tokens: 0 }
  const text = ':\n\n: started abc123 17\n\nid: 0:1:5\ndata: {}\n\n'
  expect(take(text, progress)).toBe(text)
  expect(progress).toMatchObject({ digest: 'abc123', promptTokens: 17, tokens: 1 })
})

test('the same adapter goes on, and the prompt counts once', () => {
  const progress: StreamProgress = { delivered: { 0: [5] }, tokens: 1, digest: 'abc123', promptTokens: 17 }
  take(': started abc123 18\n\nid: 0:2:6\ndata: {}\n\n', progress)
  expect(progress).toMatchObject({ digest: 'abc123', promptTokens: 17, tokens: 2 })
})

test.each(['def456', 'base'])('another one (%s) may not go on', (digest) => {
  const progress: StreamProgress = { delivered: { 0: [5] }, tokens: 1, digest: 'abc123' }
  expect(() => take(`: started ${digest} 17\n\nid: 0:2:6\ndata: {}\n\n`, progress)).toThrow(StreamGapError)
  expect(progress.tokens).toBe(1)
})
