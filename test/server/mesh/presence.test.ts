import { expect, it } from 'vitest'
import type { PodRecord } from '../../../server/catalogue/source.ts'
import { presenceSlices } from '../../../server/mesh/presence.ts'

const record = (n: number, ips = [`10.0.${n >> 8}.${n & 255}`]): PodRecord => ({
  uid: `u${String(n).padStart(5, '0')}`,
  namespace: 'shop',
  name: `p${n}`,
  serviceAccount: 'default',
  ips,
  hostIPs: [],
  containerPorts: [],
  sidecar: true,
  finished: false,
})
const pods = new Map(Array.from({ length: 2_500 }, (_, i) => record(i)).map((p) => [p.uid, p]))

it('is a slice for each thousand of pods', () => {
  const slices = presenceSlices('server-1', [...pods.keys()].reverse(), pods)
  expect(slices.map((s) => [s.name, s.endpoints.length])).toEqual([
    ['edgemesh-presence-server-1-0', 1_000],
    ['edgemesh-presence-server-1-1', 1_000],
    ['edgemesh-presence-server-1-2', 500],
  ])
  expect(slices[0]?.endpoints[0]).toMatchObject({
    addresses: ['10.0.0.0'],
    targetRef: { name: 'p0', uid: 'u00000' },
  })
})

it('leaves out who the catalogue does not know, and who has no address', () => {
  const few = new Map([['u00001', record(1, [])]])
  expect(presenceSlices('server-1', ['u00001', 'gone'], few)).toEqual([])
})
