import type { AccessLog } from '../access-log.ts'
import type { SidecarMetrics } from '../sidecar-metrics.ts'
import { type ExpressReport, endings, figuresEach, REFUSED } from './messages.ts'

/** Connections of one batch that are alike. */
interface Total {
  direction: 'inbound' | 'outbound'
  route: string
  outcome: string
  connections: number
  sent: number
  received: number
}

/** Writes the access lines of connections that the worker has carried, and counts them. */
export function account(
  { abouts, figures }: Extract<ExpressReport, { type: 'closed' }>,
  accessLog: AccessLog,
  metrics: SidecarMetrics,
): void {
  const totals = new Map<string, Total>()
  for (let at = 0; at < figures.length; at += figuresEach) {
    const about = abouts[figures[at] ?? 0]
    const ending = figures[at + 1] ?? 0
    const closed = endings[ending]
    const [sent = 0, received = 0, connectMs = 0, durationMs = 0] = figures.subarray(at + 2, at + figuresEach)
    if (about === undefined || closed === undefined) continue
    const { direction, destination, peer, ...chosen } = about
    const opened = { direction, destination, ...(peer && { peer }) }
    const times = { connectMs: connectMs === 0 ? undefined : connectMs, durationMs }
    accessLog.record(opened, chosen, { sent, received, ...closed }, times)
    if (direction === 'inbound' && ending >= REFUSED)
      metrics.inboundRefused.inc({ reason: closed.closeReason })
    const [route, outcome] = [about.route, closed.closeReason]
    const name = `${direction} ${route} ${outcome}`
    const total = totals.get(name) ?? { direction, route, outcome, connections: 0, sent: 0, received: 0 }
    totals.set(name, total)
    total.connections++
    total.sent += sent
    total.received += received
  }
  for (const total of totals.values()) {
    const { direction, route, outcome, connections } = total
    accessLog.count(direction, route, outcome, total)
    if (direction === 'outbound') metrics.express.inc({ outcome: 'carried' }, connections)
  }
}
