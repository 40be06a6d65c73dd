import type { Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import { idOf, type ServiceEntry } from '#shared/catalogue.ts'
import { codeOf, EdgeMeshError, sentenceOf } from '#shared/errors.ts'
import { sidecarPorts } from '#shared/ports.ts'
import { resetStream } from '#shared/reset.ts'
import { type SpliceResult, spliceSockets } from '#shared/splice.ts'
import type { AccessLog, Entry } from '../access-log.ts'
import type { Balancer } from '../services/balancer.ts'
import type { Catalogue } from '../services/catalogue.ts'
import type { CatalogueWatch } from '../services/catalogue-watch.ts'
import { type Destination, decideDestination } from '../services/destination.ts'
import { authorityOf } from '../tunnel/connect.ts'
import type { BulkStream } from '../tunnel/side-dialer.ts'
import type { FastPath } from './fast-path.ts'
import type { Router } from './router.ts'

/** Endpoints tried for one connection before the app sees a reset. */
const maxAttempts = 3
/** How long an app waits at most until its connection is through or reset, in ms. */
const connectDeadlineMs = 15_000

export interface OutboundOptions {
  self: { podUid: string; podIPs: readonly string[]; node: string | undefined; zone: string | undefined }
  catalogue: Catalogue
  watch: CatalogueWatch
  balancer: Balancer
  router: Router
  accessLog: AccessLog
  fastPath: FastPath
  signal: AbortSignal
}

interface Carried {
  stream: Duplex
  bulk?: BulkStream
  release: () => void
}

/** Carries one captured connection from the app to an endpoint of the service that it dialled. */
export class Outbound {
  readonly #options: OutboundOptions

  constructor(options: OutboundOptions) {
    this.#options = options
  }

  /** Never rejects; the outcome is the app's bytes, or a reset, and one access line. */
  async carry(socket: Socket, destination: Destination): Promise<void> {
    const { accessLog, signal } = this.#options
    const entry = accessLog.open({
      direction: 'outbound',
      destination: authorityOf(destination.address, destination.port),
    })
    // One controller for all that ends the dial: AbortSignal.any costs more than all else that JavaScript does here.
    const gone = new AbortController()
    const onClose = () => gone.abort(new EdgeMeshError('reset', 'Cannot go on: the app gave up.'))
    const onStop = () => gone.abort(signal.reason)
    socket.once('close', onClose)
    signal.addEventListener('abort', onStop)
    const late = setTimeout(() => gone.abort(tooLate), connectDeadlineMs)
    const settle = () => {
      clearTimeout(late)
      socket.off('close', onClose)
      signal.removeEventListener('abort', onStop)
    }
    try {
      if (signal.aborted) onStop()
      const dialled = this.#connect(socket, destination, entry, gone.signal).finally(settle)
      const { stream, bulk, release } = await dialled
      entry.connected()
      const options = { signal, ...this.#options.fastPath.optionsFor(bulk) }
      const result = await spliceSockets(socket, stream, options).finally(release)
      entry.close({ sent: result.aToB, received: result.bToA, closeReason: reasonOf(result) })
    } catch (error) {
      resetStream(socket)
      entry.close({ closeReason: codeOf(error), error: sentenceOf(error) })
    }
  }

  async #connect(
    socket: Socket,
    destination: Destination,
    entry: Entry,
    signal: AbortSignal,
  ): Promise<Carried> {
    const { catalogue, self, router } = this.#options
    const decision = decideDestination(destination, (address) => catalogue.byAddress(address), {
      podIPs: self.podIPs,
      ownPorts: sidecarPorts,
    })
    if (decision.kind === 'service') {
      return this.#connectService(decision.service, decision.portName, socket, destination, entry, signal)
    }
    if (decision.kind === 'reset') {
      throw new EdgeMeshError('refused', `Cannot connect to ${destination.address}: ${decision.why}.`)
    }
    const endpoint = { addresses: [destination.address], sidecar: false }
    const { stream, route } = await router.connect({ endpoint, ...destination }, signal)
    entry.chose({ endpoint: authorityOf(destination.address, destination.port), route })
    return { stream, release: () => undefined }
  }

  /** Tries one endpoint after another, before the first byte only, until one is connected. */
  async #connectService(
    service: ServiceEntry,
    portName: string,
    socket: Socket,
    destination: Destination,
    entry: Entry,
    signal: AbortSignal,
  ): Promise<Carried> {
    const { watch, balancer, self } = this.#options
    const id = idOf(service)
    entry.chose({ service: `${id}:${destination.port}` })
    const failed = new Set<string>()
    let last: unknown
    while (failed.size < maxAttempts && !signal.aborted) {
      const endpoints = await watch.endpoints(id, signal)
      const wanted = {
        service,
        portName,
        endpoints,
        client: socket.remoteAddress ?? '',
        self,
        exclude: failed,
      }
      const choice = balancer.pick({ ...wanted, address: destination.address })
      if (choice === undefined) break
      const { endpoint, address, port, key } = choice
      entry.chose({
        endpoint: authorityOf(address, port),
        ...(endpoint.podUid === undefined ? {} : { podUid: endpoint.podUid }),
      })
      balancer.opened(id, key)
      try {
        const target = { endpoint, address, port }
        const { route, ...connected } = await this.#options.router.connect(target, signal)
        entry.chose({ route })
        return { ...connected, release: () => balancer.closed(id, key) }
      } catch (error) {
        balancer.closed(id, key)
        failed.add(key)
        last = error
      }
    }
    throw (
      last ?? new EdgeMeshError('no-endpoint', `Cannot connect to service ${id}: it has no ready endpoint.`)
    )
  }
}

const tooLate = new EdgeMeshError(
  'timeout',
  `Cannot connect: no endpoint answered within ${connectDeadlineMs} ms.`,
)

function reasonOf(result: SpliceResult): string {
  if (result.reason !== 'reset') return result.reason
  return result.by === 'a' ? 'reset by app' : 'reset by peer'
}
