import type { Rig } from './rig.ts'
import type { Rules } from './verdict.ts'

/** Ends the fault. */
export type Heal = () => Promise<unknown>

/** One way to hurt a mesh that carries traffic. */
export interface ChaosCase {
  name: string
  what: string
  rules?: Partial<Rules>
  /** Needs sidecars whose clocks can be set. */
  clocks?: true
  /** Begins the fault; returns how it ends, unless it is over at once. */
  start(rig: Rig): Promise<Heal | undefined>
  /** How long the fault lasts once it has begun, in ms. */
  lastsMs: number
  /** The mesh must recover while the fault lasts: the time counts from its beginning. */
  alone?: true
  /** What else must be so in the end; throws if it is not. */
  check?(rig: Rig): Promise<void>
}
