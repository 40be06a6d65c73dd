import { once } from 'node:events'
import type { Socket } from 'node:net'
import { describe, expect, it, vi } from 'vitest'
import { Splice } from '#shared/splice.ts'
import { ByteBudget } from '../../../sidecar/tunnel/byte-budget.ts'
import { tcpPair } from '../shared/tcp.ts'

/** The far ends of a splice that is on the budget. */
async function watched(budget: ByteBudget): Promise<{ peer: Socket; app: Socket; splice: Splice }> {
  const [peer, a] = await tcpPair()
  const [app, b] = await tcpPair()
  const splice = new Splice(a, b, { onBlocked: (one, from) => from === 'b' && budget.blocked(one) })
  budget.watch(splice)
  return { peer, app, splice }
}

async function end(...all: { peer: Socket; app: Socket; splice: Splice }[]): Promise<void> {
  for (const { peer, app } of all) {
    peer.destroy()
    app.destroy()
  }
  await Promise.all(all.map(({ splice }) => splice.done))
}

const much = Buffer.alloc(16 * 1024 * 1024, 'x')

describe('the budget of a peer that does not read', () => {
  it('stops the reading of all its apps, and goes on once it reads', async () => {
    const budget = new ByteBudget(1)
    const [first, second] = [await watched(budget), await watched(budget)]
    first.peer.pause()
    first.app.write(much)
    await vi.waitFor(() => expect(budget.full).toBe(true))
    expect(second.splice.stream('b').isPaused()).toBe(true)
    let got = 0
    const all = Promise.withResolvers<void>()
    first.peer.on('data', (chunk) => {
      got += chunk.length
      if (got === much.length) all.resolve()
    })
    first.peer.resume()
    await all.promise
    second.app.write('on')
    expect(String((await once(second.peer, 'data'))[0])).toBe('on')
    await vi.waitFor(() => expect([budget.full, budget.bytes]).toEqual([false, 0]))
    await end(first, second)
  })

  it('forgets what has ended', async () => {
    const budget = new ByteBudget(1)
    const [first, second] = [await watched(budget), await watched(budget)]
    first.peer.pause()
    first.app.write(much)
    await vi.waitFor(() => expect(budget.full).toBe(true))
    await end(first)
    expect([budget.full, budget.bytes]).toEqual([false, 0])
    second.app.write('on')
    expect(String((await once(second.peer, 'data'))[0])).toBe('on')
    await end(second)
  })
})
