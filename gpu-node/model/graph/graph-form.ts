/** Which graph is built: the weights' format, and how adapters enter. One session each, over one copy of the weights. */

export type WeightFormat = 'f32' | 'int8' | 'int4'

export interface GraphForm {
  weights: WeightFormat
  /** `none`: base rows only. `uniform`: every row uses one adapter, whose matrices are the graph's inputs. */
  lora: 'none' | 'uniform'
  /** The adapter has DoRA magnitudes or biases: outputs are multiplied by a gain and shifted. */
  extras: boolean
}
