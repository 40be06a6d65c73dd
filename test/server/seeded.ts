import { SeededBytes } from '../conformance/traffic.ts'

/** Random choices that are the same for the same seed. */
export class Seeded {
  readonly #bytes: SeededBytes

  constructor(seed: number) {
    this.#bytes = new SeededBytes(seed * 0x9e3779b1)
    this.#bytes.block(64) // small seeds begin alike
  }

  /** An integer from 0 to `end`, without it. */
  below(end: number): number {
    return this.#bytes.block(4).readUInt32LE() % end
  }

  bytes(length: number): Buffer {
    return this.#bytes.block(length)
  }

  pick<T>(items: readonly [T, ...T[]] | readonly T[]): T {
    return items[this.below(items.length)] as T
  }
}
