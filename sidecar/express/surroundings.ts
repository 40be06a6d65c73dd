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
  /** How long it has to connect at first, in ms. */
  readonly patienceMs: number
  /** Of its roster only: its place there, or -1. */
  seat: number
  readonly isConnecting: boolean
  /** Its time to connect is up: false when it gives itself some more, and is to be asked again. */
  late(): boolean
  /** Resets it. */
  abort(): void
}

/** What becomes of a captured connection; `fd` is nobody's with `punt`. */
export interface CapturedEvents {
  /** Nothing was read: the main thread tries again. `failed`: its flow is at fault. */
  punt: (connection: Carried & { flowKey: string; key: string }, fd: number, failed: boolean) => void
  end: (connection: Carried) => void
}

const tickMs = 250
/** This thread has not run for so long: answers may have come that it has not seen yet. */
const starvedMs = 750

/**
 * Connections that are open, of which those that are being made have a deadline. An array in which each knows its place: as
 * for the loop's own, a Set's old tables would keep what has ended.
 */
export class Roster<T extends Carried> {
  readonly #members: T[] = []
  #anyConnecting = false
  #sweptMs = 0
  #checkedMs = 0

  add(member: T): void {
    member.seat = this.#members.push(member) - 1
    this.#anyConnecting = true
  }

  delete(member: T): void {
    const { seat } = member
    if (seat < 0) return
    member.seat = -1
    const last = this.#members.pop()
    if (last === undefined || last === member) return
    this.#members[seat] = last
    last.seat = seat
  }

  all(): T[] {
    return [...this.#members]
  }

  /** Tells those whose time to connect is up, at intervals. Returns how long the loop may wait, in ms, or -1. */
  check(nowMs: number): number {
    const starved = nowMs - this.#checkedMs > starvedMs
    this.#checkedMs = nowMs
    if (!this.#anyConnecting) return -1
    if (!starved && nowMs - this.#sweptMs >= tickMs) {
      this.#sweptMs = nowMs
      this.#anyConnecting = this.#sweep(nowMs)
    }
    return this.#anyConnecting ? tickMs : -1
  }

  /** Whether any is still connecting. */
  #sweep(nowMs: number): boolean {
    let any = false
    for (const member of this.all()) {
      if (member.seat < 0 || !member.isConnecting) continue
      if (nowMs - member.startedMs < member.patienceMs || !member.late()) any = true
    }
    return any
  }
}
