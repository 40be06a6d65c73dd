import { monitorEventLoopDelay } from 'node:perf_hooks'
import { Metrics } from '#shared/metrics.ts'
import { natLabelsOf } from '#shared/nat.ts'
import type { NatKnowledge } from './rendezvous.ts'

const natLabels = ['mapping', 'port_preserved', 'proven', 'filtering'] as const

/** Every metric of the server, in one place. */
export class ServerMetrics extends Metrics {
  readonly certificates = this.counter('certificates_issued_total', 'Certificates issued to pods.')
  readonly refusals = this.counter('control_refusals_total', 'Control channels that were refused.', [
    'reason',
  ])
  readonly tickets = this.counter('relay_tickets_total', 'Relay tickets, by what became of them.', [
    'outcome',
  ])
  readonly rendezvous = this.counter('rendezvous_total', 'Meetings for punched connections, by outcome.', [
    'outcome',
  ])
  readonly relayBytes = this.counter('relay_bytes_total', 'Bytes of finished relayed pairs, both ways.')
  readonly kubernetesRequests = this.counter(
    'kubernetes_requests_total',
    'Requests to the API server, by method and status.',
    ['method', 'outcome'],
  )
  readonly #pauses = monitorEventLoopDelay({ resolution: 10 })

  constructor() {
    super()
    this.#pauses.enable()
    this.gauge(
      'event_loop_longest_pause_seconds',
      'Longest pause of the event loop since the last scrape.',
      () => {
        const longest = this.#pauses.max / 1e9
        this.#pauses.reset()
        return longest
      },
    )
  }

  /** How many connected pods are behind which kind of NAT. */
  natsOf(read: () => NatKnowledge[]): void {
    this.gauges('nat_pods', 'Connected pods, by what the server sees of their NAT.', natLabels, () =>
      read().map((nat) => ({ ...natLabelsOf(nat), filtering: nat.filtering })),
    )
  }

  readonly connections = this.counter('connections_total', 'Accepted connections, by their first byte.', [
    'kind',
  ])
}
