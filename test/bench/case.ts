import type { Figure, Values } from './figures.ts'
import type { Rig } from './rig.ts'

/** A way to measure both sides of a case, made ready in a rig. */
export interface Trial {
  ours(): Promise<Values>
  /** Left out for absolute cases: `limits` are then the other side. */
  peer?: () => Promise<Values>
  limits?: Values
}

export interface BenchCase {
  name: string
  what: string
  peerName: string
  /** Round-trip time of the lab's internet, in ms. */
  rttMs: number
  /** How often at most: some cases measure for a minute what does not vary. */
  maxRounds?: number
  figures: readonly Figure[]
  prepare(rig: Rig): Promise<Trial>
}
