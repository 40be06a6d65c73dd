import { createSocket, type Socket } from 'node:dgram'
import { isIP } from 'node:net'
import { codeOf } from '#shared/errors.ts'
import type { Logger } from '#shared/log.ts'
import { ports } from '#shared/ports.ts'

export interface Services {
  loaded: boolean
  byAddress(address: string): { bypass: boolean } | undefined
}

/** Of the addresses that the rules leave alone: which belong to a service that did not opt out, by now. */
export function decideReclaimed(ignored: readonly string[], services: Services): Map<string, boolean> {
  if (!services.loaded) return new Map()
  return new Map(ignored.map((address) => [address, services.byAddress(address)?.bypass === false]))
}

/**
 * Keeps the rules of this pod right when a service loses its label noproxy, or its clusterIP goes to another one.
 * The rules understand a datagram of ours to the address (see rules.ts), and drop it: EPERM is their "done".
 */
export class Reclaimer {
  readonly #ignored: readonly string[]
  readonly #services: Services
  readonly #log: Logger
  readonly #told = new Map<string, boolean>()
  readonly #sockets = new Map<number, Socket>()

  constructor(ignored: readonly string[], services: Services, log: Logger) {
    this.#ignored = ignored
    this.#services = services
    this.#log = log
  }

  /** To be called after each change of services. Rules outlive the sidecar, so the first call tells all. */
  update(): void {
    for (const [address, reclaimed] of decideReclaimed(this.#ignored, this.#services)) {
      if (this.#told.get(address) === reclaimed) continue
      this.#told.set(address, reclaimed)
      this.#tell(address, reclaimed)
    }
  }

  close(): void {
    for (const socket of this.#sockets.values()) socket.close()
    this.#sockets.clear()
  }

  #tell(address: string, reclaimed: boolean): void {
    const port = reclaimed ? ports.reclaim : ports.release
    this.#socket(isIP(address)).send(Buffer.alloc(1), port, address, (error) => {
      if (codeOf(error) === 'EPERM') this.#log.info({ address, reclaimed }, 'an ignored service has changed')
      else if (reclaimed)
        this.#log.warn({ address }, 'the kernel cannot take an ignored service back: recreate the pod')
    })
  }

  #socket(family: number): Socket {
    const known = this.#sockets.get(family)
    if (known !== undefined) return known
    const socket = createSocket(family === 6 ? 'udp6' : 'udp4')
    socket.on('error', () => undefined) // each send reports its own
    this.#sockets.set(family, socket)
    return socket.unref()
  }
}
