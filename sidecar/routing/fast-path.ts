import { joinOptions } from '#shared/pump/join.ts'
import type { FastPathMode } from '#shared/pump/mode.ts'
import type { Pump } from '#shared/pump/pump.ts'
import type { SpliceOptions } from '#shared/splice.ts'
import type { BulkStream, SideDialer } from '../tunnel/side-dialer.ts'

/** Where bulk goes: sockets to the pump itself, a session's stream to a side connection in it. */
export class FastPath {
  readonly #pump: Pump
  readonly #sides: SideDialer
  readonly #mode: FastPathMode

  constructor(pump: Pump, sides: SideDialer, mode: FastPathMode) {
    this.#pump = pump
    this.#sides = sides
    this.#mode = mode
  }

  optionsFor(bulk: BulkStream | undefined): SpliceOptions {
    const options = joinOptions(this.#pump, this.#mode)
    if (bulk === undefined || options.onBulk === undefined) return options
    return { ...options, onBulk: (splice) => void this.#sides.move(splice, bulk) }
  }
}
