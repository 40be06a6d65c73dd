import { pino } from 'pino'
import { describe, expect, it } from 'vitest'
import { AccessLog } from '../../../sidecar/access-log.ts'
import { account } from '../../../sidecar/express/accounts.ts'
import { type About, CLOSED, FORBIDDEN, RESET_BY_PEER } from '../../../sidecar/express/messages.ts'
import { SidecarMetrics } from '../../../sidecar/sidecar-metrics.ts'

const out: About = {
  direction: 'outbound',
  destination: '10.96.0.12:80',
  service: 'default/web:80',
  endpoint: '10.244.1.2:8080',
  podUid: 'a',
  route: 'plain',
}
const inbound: About = {
  direction: 'inbound',
  destination: '10.244.1.3:22',
  peer: 'somebody',
  route: 'inbound',
}

describe('the account of a batch', () => {
  const texts: string[] = []
  const log = pino(
    { base: { part: 'sidecar' }, timestamp: false },
    { write: (text: string) => texts.push(text) },
  )
  const metrics = new SidecarMetrics()
  const each = [
    [0, CLOSED, 60, 102, 0.126, 1.239],
    [0, RESET_BY_PEER, 7, 0, 0.5, 2],
    [1, FORBIDDEN, 0, 0, 0, 0.25],
    [0, CLOSED, 1, 2, 0.25, 3],
  ]
  account(
    { type: 'closed', abouts: [out, inbound], figures: Float64Array.from(each.flat()) },
    new AccessLog(log, metrics),
    metrics,
  )

  it('has a line of each connection, in the order in which they ended', () => {
    const rest = (bytesSent: number, bytesReceived: number, durationMs: number) => ({
      bytesSent,
      bytesReceived,
      durationMs,
    })
    const common = { level: 30, part: 'sidecar', msg: 'connection' }
    expect(texts.map((text) => JSON.parse(text))).toEqual([
      { ...common, ...out, ...rest(60, 102, 1.24), connectMs: 0.13, closeReason: 'closed' },
      { ...common, ...out, ...rest(7, 0, 2), connectMs: 0.5, closeReason: 'reset by peer' },
      {
        ...common,
        ...inbound,
        ...rest(0, 0, 0.25),
        closeReason: 'forbidden',
        error: 'the pod does not declare this port',
      },
      { ...common, ...out, ...rest(1, 2, 3), connectMs: 0.25, closeReason: 'closed' },
    ])
  })

  it('counts those that are alike together', async () => {
    const text = await metrics.registry.metrics()
    for (const line of [
      'edgemesh_connections_total{direction="outbound",route="plain",outcome="closed"} 2',
      'edgemesh_connections_total{direction="outbound",route="plain",outcome="reset by peer"} 1',
      'edgemesh_connections_total{direction="inbound",route="inbound",outcome="forbidden"} 1',
      'edgemesh_bytes_total{direction="outbound",way="sent"} 68',
      'edgemesh_bytes_total{direction="outbound",way="received"} 104',
      'edgemesh_express_connections_total{outcome="carried"} 3',
      'edgemesh_inbound_refused_total{reason="forbidden"} 1',
      'edgemesh_connect_seconds_count{route="plain"} 3',
    ])
      expect(text).toContain(line)
    expect(text).not.toContain('edgemesh_connect_seconds_count{route="inbound"}')
  })
})
