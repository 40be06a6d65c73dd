import { joinByPump } from '#shared/pump/join.ts'
import { bulkBytesOf, type FastPathMode } from '#shared/pump/mode.ts'
import type { Pump } from '#shared/pump/pump.ts'
import type { Splice, SpliceOptions } from '#shared/splice.ts'
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
    if (this.#mode === 'never') return {}
    const onBulk = (splice: Splice) =>
      void (bulk === undefined ? joinByPump(splice, this.#pump) : this.#sides.move(splice, bulk))
    const bulkBytes = bulkBytesOf(this.#mode)
    return { onBulk, ...(bulkBytes === undefined ? {} : { bulkBytes }) }
  }
}
