import { joinOptions } from '#shared/pump/join.ts'
import type { FastPathMode } from '#shared/pump/mode.ts'
import type { Pump } from '#shared/pump/pump.ts'
import type { Splice, SpliceOptions } from '#shared/splice.ts'
import type { BulkStream, SideDialer } from '../tunnel/side-dialer.ts'

/**
 * Streams that talk in turn are moved only while the pod has so few connections: each has two thirds of the latency
 * there, but many at once are cheaper on one session, whose records and writes they share.
 */
const maxTalking = 4

/** Where bulk goes: sockets to the pump itself, a session's stream to a side connection in it. */
export class FastPath {
  readonly #pump: Pump
  readonly #sides: SideDialer
  readonly #mode: FastPathMode
  readonly #openConnections: () => number

  constructor(pump: Pump, sides: SideDialer, mode: FastPathMode, openConnections: () => number) {
    this.#pump = pump
    this.#sides = sides
    this.#mode = mode
    this.#openConnections = openConnections
  }

  optionsFor(bulk: BulkStream | undefined): SpliceOptions {
    const options = joinOptions(this.#pump, this.#mode)
    if (bulk === undefined || options.onBulk === undefined) return options
    const move = (splice: Splice) => void this.#sides.move(splice, bulk)
    const onTalk = (splice: Splice) => {
      if (this.#openConnections() <= maxTalking) move(splice)
    }
    return { ...options, onBulk: move, onTalk }
  }
}
