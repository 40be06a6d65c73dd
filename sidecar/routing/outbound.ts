import type { Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import { idOf, type ServiceEntry } from '#shared/catalogue.ts'
import { codeOf, EdgeMeshError, sentenceOf } from '#shared/errors.ts'
import { sidecarPorts } from '#shared/ports.ts'
import { resetStream } from '#shared/reset.ts'
import { type SpliceResult, spliceSockets } from '#shared/splice.ts'
import type { AccessLog, Entry } from '../access-log.ts'
import type { Balancer, Choice } from '../services/balancer.ts'
import type { Catalogue } from '../services/catalogue.ts'
import type { CatalogueWatch } from '../services/catalogue-watch.ts'
import { type Destination, type Detour, decideDestination } from '../services/destination.ts'
import { RetryBudget } from '../services/retry-budget.ts'
import type { SidecarMetrics } from '../sidecar-metrics.ts'
import { authorityOf } from '../tunnel/connect.ts'
import type { BulkStream } from '../tunnel/side-dialer.ts'
import { Attempts } from './attempts.ts'
import type { FastPath } from './fast-path.ts'
import type { RouteKind } from './plan.ts'
import type { Connected, Router } from './router.ts'

/** How long an app waits at most until its connection is through or reset, in ms: a little less than 15 s, for the way of the reset. */
const connectDeadlineMs = 14_500

export interface OutboundOptions {
  self: { podUid: string; podIPs: readonly string[]; node: string | undefined; zone: string | undefined }
  catalogue: Catalogue
  watch: CatalogueWatch
  balancer: Balancer
  router: Router
  accessLog: AccessLog
  metrics: SidecarMetrics
  fastPath: FastPath
  /** Whether the connection is carried elsewhere, with nothing read of it. */
  follow: (socket: Socket, destination: Destination) => Promise<boolean>
  /** Told of each destination that was connected to, and how. */
  onRouted: (destination: Destination, routed: Routed) => void
  /** Told of each that could not be. */
  onLost: (destination: Destination) => void
  signal: AbortSignal
}

export interface Routed {
  /** The endpoint's, where it is one of a service. */
  key?: string
  route: RouteKind
  /** More ways to the peer, where it was reached by a tunnel. */
  bulk?: BulkStream
}

interface Asked {
  destination: Destination
  client: string
  turn: Detour['turn'] | undefined
}

interface Carried extends Routed {
  stream: Duplex
  release: () => void
}

/** Carries one captured connection from the app to an endpoint of the service that it dialled. */
export class Outbound {
  readonly #options: OutboundOptions
  readonly #retries = new RetryBudget()

  constructor(options: OutboundOptions) {
    this.#options = options
  }

  /** Never rejects; the outcome is the app's bytes, or a reset, and one access line. */
  async carry(socket: Socket, destination: Destination, detour: Detour): Promise<void> {
    const { accessLog, signal } = this.#options
    const dueMs = performance.now() + connectDeadlineMs - (detour.waitedMs ?? 0)
    if (await this.#options.follow(socket, destination)) return
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
    const late = setTimeout(() => gone.abort(tooLate), dueMs - performance.now())
    const settle = () => {
      clearTimeout(late)
      socket.off('close', onClose)
      signal.removeEventListener('abort', onStop)
    }
    try {
      if (signal.aborted) onStop()
      const asked = { destination, client: socket.remoteAddress ?? '', turn: detour.turn }
      const carried = await this.#connect(asked, entry, gone.signal).finally(settle)
      const { stream, bulk, release } = carried
      entry.connected()
      this.#options.onRouted(destination, carried)
      const options = { signal, ...this.#options.fastPath.optionsFor(bulk) }
      const result = await spliceSockets(socket, stream, options).finally(release)
      entry.close({ sent: result.aToB, received: result.bToA, closeReason: reasonOf(result) })
    } catch (error) {
      this.#options.onLost(destination)
      resetStream(socket)
      entry.close({ closeReason: codeOf(error), error: sentenceOf(error) })
    }
  }

  async #connect(asked: Asked, entry: Entry, signal: AbortSignal): Promise<Carried> {
    const { catalogue, self, router } = this.#options
    const { destination } = asked
    const decision = decideDestination(destination, (address) => catalogue.byAddress(address), {
      podIPs: self.podIPs,
      ownPorts: sidecarPorts,
    })
    if (decision.kind === 'service') {
      return this.#connectService(decision.service, decision.portName, asked, entry, signal)
    }
    if (decision.kind === 'reset') {
      throw new EdgeMeshError('refused', `Cannot connect to ${destination.address}: ${decision.why}.`)
    }
    const endpoint = { addresses: [destination.address], sidecar: false }
    const { stream, route } = await router.connect({ endpoint, ...destination }, signal)
    entry.chose({ endpoint: authorityOf(destination.address, destination.port), route })
    return { stream, route, release: () => undefined }
  }

  /** Tries the service's endpoints, before the first byte only, until one is connected or each has failed. */
  async #connectService(
    service: ServiceEntry,
    portName: string,
    { destination, client, turn }: Asked,
    entry: Entry,
    signal: AbortSignal,
  ): Promise<Carried> {
    const { watch, balancer, self, router, metrics } = this.#options
    const id = idOf(service)
    entry.chose({ service: `${id}:${destination.port}` })
    const wanted = { service, portName, client, self, turn, address: destination.address }
    const attempts = new Attempts<Connected>(
      {
        service: id,
        next: async (exclude) => {
          const endpoints = await watch.endpoints(id, signal)
          return balancer.pick({ ...wanted, endpoints, exclude })
        },
        reach: (choice) => router.reach(choice),
        open: (choice) => router.connect(choice, signal),
        discard: ({ stream }) => resetStream(stream),
        onStart: (choice) => {
          entry.chose(shown(choice))
          balancer.opened(id, choice.key)
        },
        onLost: (choice) => balancer.closed(id, choice.key),
        onEjected: (reason) => metrics.ejections.inc({ reason }),
        onRetry: (reason) => metrics.retries.inc({ reason }),
        budget: () => this.#retries.take(id),
        health: balancer.health,
      },
      signal,
    )
    this.#retries.onConnection(id)
    const { choice, value } = await attempts.connect()
    const { route, ...connected } = value
    entry.chose({ ...shown(choice), route })
    balancer.stick({ service, client }, choice.key)
    return { ...connected, route, key: choice.key, release: () => balancer.closed(id, choice.key) }
  }
}

function shown({ endpoint, address, port }: Choice) {
  const { podUid } = endpoint
  return { endpoint: authorityOf(address, port), ...(podUid === undefined ? {} : { podUid }) }
}

const tooLate = new EdgeMeshError(
  'timeout',
  `Cannot connect: no endpoint answered within ${connectDeadlineMs} ms.`,
)

function reasonOf(result: SpliceResult): string {
  if (result.reason !== 'reset') return result.reason
  return result.by === 'a' ? 'reset by app' : 'reset by peer'
}
