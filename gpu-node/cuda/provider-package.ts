/** The npm package that carries ONNX Runtime's CUDA 13 provider libraries: which, its integrity, and what is taken from it. */

/** By a third party, who repackages Microsoft's binaries: nothing of it is used whose bytes are not these. */
export const PROVIDER_PACKAGE = {
  name: 'com.github.asus4.onnxruntime.linux-x64-gpu',
  version: '0.4.9',
  /** npm's: SHA-512 of the tarball, base64. */
  integrity: 'sha512-FopIhNE/Ng+v2X65wVc9clPCBCvhvA53Hxo2U0Kf5fGdVsC7iCA+mZ0KLWggcQAj7TIZ6pNidR4AC10g74Xo6w==',
  /** Of ONNX Runtime, and so of onnxruntime-node. */
  ortVersion: '1.29.0',
  bytes: 179_145_956,
} as const

/** Path in the tarball to file in the folder; all else stays packed. */
export const PROVIDER_ENTRIES: ReadonlyMap<string, string> = new Map(
  ['libonnxruntime_providers_cuda.so', 'libonnxruntime_providers_shared.so'].map((file) => [
    `package/Plugins/Linux/x64/${file}`,
    file,
  ]),
)
