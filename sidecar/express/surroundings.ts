import type { JointOptions } from '#shared/pump/joint.ts'
import type { PipePool } from '#shared/pump/lanes.ts'
import type { Loop, Task } from '#shared/pump/loop.ts'
import type { Ledger } from './ledger.ts'
import type { Records } from './records.ts'
import type { Windows } from './window.ts'

/** What all connections of the worker share. */
export interface Surroundings {
  loop: Loop
  pipes: PipePool
  ledger: Ledger
  records: Records
  windows: Windows
  jointOptions: () => JointOptions
}

/** A connection that the worker carries. */
export interface Carried extends Task {
  readonly startedMs: number
  readonly isConnecting: boolean
  /** Its time to connect is up: false when it gives itself some more, and is to be asked again. */
  late(): boolean
  /** Resets it. */
  abort(): void
}

/** What becomes of a captured connection; `fd` is nobody's with `punt`. */
export interface CapturedEvents {
  /** Nothing was read: the main thread tries again. `failed`: its flow is at fault. */
  punt: (connection: Carried & { flowKey: string }, fd: number, failed: boolean) => void
  end: (connection: Carried) => void
}

const tickMs = 250
/** This thread has not run for so long: answers may have come that it has not seen yet. */
const starvedMs = 750

/** Connections that are being made, each with as much time at first; looked at in the order in which they began. */
export class Connecting {
  readonly #deadlineMs: number
  readonly #connections = new Set<Carried>()
  /** Those that have given themselves more time: few, and asked at intervals. */
  readonly #late = new Set<Carried>()
  #askedMs = 0
  #checkedMs = 0

  constructor(deadlineMs: number) {
    this.#deadlineMs = deadlineMs
  }

  add(connection: Carried): void {
    this.#connections.add(connection)
  }

  delete(connection: Carried): void {
    this.#connections.delete(connection)
    this.#late.delete(connection)
  }

  /** Those that are connected leave the front of the queue; the first that is not is the oldest. Returns ms to wait, or -1. */
  check(nowMs: number): number {
    const starved = nowMs - this.#checkedMs > starvedMs
    this.#checkedMs = nowMs
    if (!starved) this.#ask(nowMs)
    return this.#connections.size + this.#late.size > 0 ? tickMs : -1
  }

  #ask(nowMs: number): void {
    for (const connection of this.#connections) {
      if (connection.isConnecting) {
        if (nowMs - connection.startedMs < this.#deadlineMs) break
        if (!connection.late()) this.#late.add(connection)
      }
      this.#connections.delete(connection)
    }
    if (this.#late.size > 0 && nowMs - this.#askedMs >= tickMs) {
      this.#askedMs = nowMs
      for (const connection of [...this.#late])
        if (!connection.isConnecting || connection.late()) this.#late.delete(connection)
    }
  }
}
