import type { AccessLog, Alike } from '../access-log.ts'
import type { SidecarMetrics } from '../sidecar-metrics.ts'
import { type ExpressReport, endings, figuresEach, REFUSED } from './messages.ts'

/** Writes the access lines of connections that the worker has carried, and counts them. */
export function account(
  { abouts, figures }: Extract<ExpressReport, { type: 'closed' }>,
  accessLog: AccessLog,
  metrics: SidecarMetrics,
): void {
  const groups = new Map<number, Alike>()
  for (let at = 0; at < figures.length; at += figuresEach) {
    const [index, ending] = [figures[at] ?? 0, figures[at + 1] ?? 0]
    const name = index * endings.length + ending
    let group = groups.get(name)
    if (group === undefined) {
      const [about, closed] = [abouts[index], endings[ending]]
      if (about === undefined || closed === undefined) continue
      const { direction, destination, peer, ...chosen } = about
      group = accessLog.alike({ direction, destination, ...(peer && { peer }) }, chosen, closed)
      groups.set(name, group)
    }
    const connectMs = figures[at + 4] || undefined // 0 where it came to none
    group.record(figures[at + 2] ?? 0, figures[at + 3] ?? 0, figures[at + 5] ?? 0, connectMs)
  }
  for (const [name, group] of groups) {
    const ending = name % endings.length
    const direction = abouts[Math.floor(name / endings.length)]?.direction
    group.count()
    const { connections } = group
    if (direction === 'outbound') metrics.express.inc({ outcome: 'carried' }, connections)
    const reason = endings[ending]?.closeReason
    if (direction === 'inbound' && ending >= REFUSED && reason !== undefined)
      metrics.inboundRefused.inc({ reason }, connections)
  }
}
