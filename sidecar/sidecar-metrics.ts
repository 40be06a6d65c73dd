import { Metrics } from '#shared/metrics.ts'

/** Every metric of the sidecar, in one place. */
export class SidecarMetrics extends Metrics {
  readonly connections = this.counter('connections_total', 'Finished connections, by outcome.', [
    'direction',
    'route',
    'outcome',
  ])
  readonly bytes = this.counter('bytes_total', 'Bytes of finished connections.', ['direction', 'way'])
  readonly connectSeconds = this.histogram('connect_seconds', 'Time until the upstream was connected.', [
    'route',
  ])
  readonly handshakeFailures = this.counter('handshake_failures_total', 'Refused TLS peers.', [
    'direction',
    'reason',
  ])
  readonly inboundRefused = this.counter('inbound_refused_total', 'CONNECTs that were not served.', [
    'reason',
  ])
  readonly routeFailures = this.counter(
    'route_failures_total',
    'Routes to a peer that could not be opened.',
    ['route', 'reason'],
  )
  readonly ejections = this.counter('endpoint_ejections_total', 'Endpoints that failed and were ejected.', [
    'reason',
  ])
  readonly retries = this.counter(
    'retries_total',
    'Further endpoints tried for a connection, by what the one before did.',
    ['reason'],
  )
  readonly controlConnects = this.counter('control_connects_total', 'Attempts to reach the server.', [
    'outcome',
  ])
  readonly sideConnections = this.counter('side_connections_total', 'Bulk streams moved to the pump.', [
    'side',
    'outcome',
  ])
  readonly punches = this.counter('punches_total', 'Punched connections, by side and outcome.', [
    'side',
    'outcome',
  ])
  readonly lanes = this.counter('lanes_total', 'Lanes that were opened or refused, by side.', [
    'side',
    'outcome',
  ])
  readonly express = this.counter(
    'express_connections_total',
    'Captured connections that the worker carried by itself, or gave to the main thread.',
    ['outcome'],
  )
  readonly relayJoins = this.counter('relay_joins_total', 'Relay joins of this pod.', ['side', 'outcome'])
}
