/** Why a base model can't be served: one line for the operator, naming the file, field or tensor and the values in conflict. */
export class ModelError extends Error {
  override readonly name = 'ModelError'
}
