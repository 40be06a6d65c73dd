import { monitorEventLoopDelay } from 'node:perf_hooks'
import { Metrics } from '#shared/metrics.ts'

/** Every metric of the server, in one place. */
export class ServerMetrics extends Metrics {
  readonly certificates = this.counter('certificates_issued_total', 'Certificates issued to pods.')
  readonly refusals = this.counter('control_refusals_total', 'Control channels that were refused.', [
    'reason',
  ])
  readonly tickets = this.counter('relay_tickets_total', 'Relay tickets, by what became of them.', [
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

  readonly connections = this.counter('connections_total', 'Accepted connections, by their first byte.', [
    'kind',
  ])
}
