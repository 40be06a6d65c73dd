import { afterEach, describe, expect, it } from 'vitest'
import { Admission } from '../../server/admission.ts'
import { receive } from '../sidecar/shared/tcp.ts'
import { TestClient } from './client.ts'
import { pod, TestServer } from './harness.ts'
import { connectTo, readStatus, upgradeRequest } from './http.ts'

const limits = { connections: 100, unproven: 5, unprovenPerAddress: 3 }
const at = (address: string, port: number) => ({ address, port })

describe('admission', () => {
  it('lets an address have so many unproven connections, and any number of proven ones', () => {
    const admission = new Admission(limits)
    for (let port = 1; port <= 50; port++) {
      expect(admission.enter(at('192.0.2.1', port))).toBe(true)
      admission.prove(at('192.0.2.1', port))
    }
    const entered = [51, 52, 53, 54].map((port) => admission.enter(at('192.0.2.1', port)))
    expect(entered).toEqual([true, true, true, false])
  })

  it('keeps no address from another, until all together are too many', () => {
    const admission = new Admission(limits)
    for (const port of [1, 2, 3]) admission.enter(at('192.0.2.1', port))
    const entered = [1, 2, 3].map((port) => admission.enter(at('192.0.2.2', port)))
    expect(entered).toEqual([true, true, false])
  })

  it('gives the place of one that left, or was proven, to the next', () => {
    const admission = new Admission(limits)
    for (const port of [1, 2, 3]) admission.enter(at('192.0.2.1', port))
    admission.leave(at('192.0.2.1', 1))
    admission.prove(at('192.0.2.1', 2))
    admission.prove(at('192.0.2.1', 2))
    admission.leave(at('192.0.2.1', 2))
    expect(admission.unproven).toBe(1)
    const entered = [4, 5, 6].map((port) => admission.enter(at('192.0.2.1', port)))
    expect(entered).toEqual([true, true, false])
  })

  it('has a bound for all', () => {
    const admission = new Admission({ ...limits, connections: 2 })
    for (const port of [1, 2]) {
      admission.enter(at('192.0.2.1', port))
      admission.prove(at('192.0.2.1', port))
    }
    expect(admission.enter(at('192.0.2.9', 1))).toBe(false)
  })
})

describe('a server whose clients are behind one address', () => {
  const pods = Array.from({ length: 12 }, (_, i) => pod(`pod-${i}`))
  const [first = pod(''), second = pod(''), last = pod('')] = [pods[0], pods[1], pods.at(-1)]
  let server: TestServer

  afterEach(async () => {
    await server.close()
  })

  it('serves any number that show who they are, and so many that do not', async () => {
    server = await TestServer.start({
      pods,
      admission: limits,
      deadlines: { firstBytesMs: 600_000, handshakeMs: 600_000 },
    })
    for (const one of pods.slice(0, -1)) await TestClient.join(server, one)
    expect(await server.gauge('connections_unproven')).toBe(0)
    const silent = await Promise.all([1, 2, 3].map(() => connectTo(server.port)))
    await server.until('connections_unproven', 3)
    const refused = await connectTo(server.port)
    expect((await receive(refused)).bytes).toHaveLength(0)
    silent[0]?.destroy()
    await server.until('connections_unproven', 2)
    await TestClient.join(server, last)
    for (const socket of silent) socket.destroy()
  })

  it('counts no stream that joined the relay by a good ticket', async () => {
    server = await TestServer.start({ pods, admission: limits })
    const [a, b] = [await TestClient.join(server, first), await TestClient.join(server, second)]
    const streams: Awaited<ReturnType<typeof connectTo>>[] = []
    for (let id = 1; id <= 5; id++) {
      a.send({ type: 'relay', id, podUid: second.uid })
      for (const { ticket } of [await a.next('ticket'), await b.next('incoming')]) {
        const socket = await connectTo(server.port)
        socket.write(upgradeRequest(ticket))
        streams.push(socket)
      }
      expect(await Promise.all(streams.slice(-2).map(readStatus))).toEqual([101, 101])
    }
    expect(await server.gauge('connections_unproven')).toBe(0)
    for (const socket of streams) socket.destroy()
  })
})
