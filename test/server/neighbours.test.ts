import { expect, it } from 'vitest'
import { Neighbours } from '../../server/neighbours.ts'

const seen = (podUid: string, address?: string) => ({
  podUid,
  observed: address === undefined ? undefined : { address },
})

it.each([
  { what: 'of one address', ours: '203.0.113.7', here: '203.0.113.7', near: true },
  { what: 'of two addresses', ours: '203.0.113.7', here: '203.0.113.8', near: false },
  {
    what: 'of one address, the other one at another replica',
    ours: '203.0.113.7',
    elsewhere: '203.0.113.7',
    near: true,
  },
  { what: 'of two addresses at two replicas', ours: '203.0.113.7', elsewhere: '203.0.113.8', near: false },
  {
    what: 'that has come here from another replica, and from another address',
    ours: '203.0.113.7',
    here: '203.0.113.8',
    elsewhere: '203.0.113.7',
    near: false,
  },
  { what: 'that nobody has seen', ours: '203.0.113.7', near: false },
  { what: 'of an address that is not known', ours: '203.0.113.7', here: 'unknown', near: false },
  { what: 'while our own address is not known', here: '203.0.113.7', near: false },
])('a pod $what is near: $near', ({ ours, here, elsewhere, near }) => {
  const neighbours = new Neighbours((podUid) =>
    here === undefined ? undefined : seen(podUid, here === 'unknown' ? undefined : here),
  )
  if (elsewhere !== undefined) neighbours.onMoved('b', elsewhere)
  expect(neighbours.areNear(seen('a', ours), 'b')).toBe(near)
})

it('forgets where a pod was once it has come up at another replica, unseen', () => {
  const neighbours = new Neighbours(() => undefined)
  neighbours.onMoved('b', '203.0.113.7')
  neighbours.onMoved('b', undefined)
  expect(neighbours.areNear(seen('a', '203.0.113.7'), 'b')).toBe(false)
})

it('remembers the latest 20,000 pods of other replicas', () => {
  const neighbours = new Neighbours(() => undefined)
  for (let i = 0; i <= 20_000; i++) neighbours.onMoved(`pod-${i}`, '203.0.113.7')
  const near = (podUid: string) => neighbours.areNear(seen('a', '203.0.113.7'), podUid)
  expect([near('pod-0'), near('pod-1'), near('pod-20000')]).toEqual([false, true, true])
})
