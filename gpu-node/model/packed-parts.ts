/** Keys of `PackedAdapter.parts` that are no input of the graph; the others are named as the graph's inputs. */

/** `[vocab, rank]`: a row a token. */
export const EMBEDDING_A = 'embedding.a'
/** `[rank, hidden]`, scaled. */
export const EMBEDDING_B = 'embedding.b'
/** `[vocab, hidden]`: a table in place of the base's. */
export const EMBEDDING_SAVED = 'embedding.saved'
/** `[vocab, hidden]`, and `[vocab]`: a head in place of the base's. */
export const HEAD_SAVED = 'head.saved'
export const HEAD_SAVED_BIAS = 'head.saved.bias'
