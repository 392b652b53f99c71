/** Starts the engine in a worker thread and resolves when its model is loaded. */

import type { EngineClient, EngineInit, LoadProgress } from './engine-client.ts'

export interface StartOptions {
  onProgress?: (progress: LoadProgress) => void
}

export declare function startEngine(init: EngineInit, options?: StartOptions): Promise<EngineClient>
