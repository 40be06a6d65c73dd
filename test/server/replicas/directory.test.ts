import { describe, expect, it } from 'vitest'
import { leaseRecord, presenceRecord, replicasOf } from '../../../server/mesh/kubernetes-directory.ts'
import { MemoryDirectory } from '../../../server/replicas/directory.ts'
import { placeOf } from '../../../server/replicas/forward.ts'

const address = { host: '10.0.0.2', port: 20_004 }
const others = new Map([['b', address]])

describe('a relay join', () => {
  it.each([
    ['with a ticket of ours is dealt with here', 'a', false, 'here'],
    ['of ours that was passed on is dealt with here', 'a', true, 'here'],
    ['with a ticket of another replica goes there', 'b', false, { forwardTo: address }],
    ['that was passed on already is never passed on again', 'b', true, 'refuse'],
    ['with a ticket of a replica that nobody knows is refused', 'c', false, 'refuse'],
    ['without a ticket is refused', '', false, 'refuse'],
  ])('%s', (_what, owner, forwarded, place) => {
    expect(placeOf(owner, 'a', others, forwarded)).toEqual(place)
  })
})

describe('a directory in memory', () => {
  it('leaves itself out, and knows what was found out last', () => {
    const directory = new MemoryDirectory('a', new Map([...others, ['a', address]]))
    expect([...directory.others.keys()]).toEqual(['b'])
    directory.learn('pod', 'b')
    expect(directory.whereIs('pod')).toBe('b')
    directory.learn('pod', undefined)
    expect(directory.whereIs('pod')).toBeUndefined()
  })
})

describe('a directory in Kubernetes', () => {
  const lease = (name: string, renewTime: string) => ({
    metadata: {
      name,
      labels: { 'sidecar.edgemesh.io/presence': name },
      ownerReferences: [{ kind: 'Pod', uid: `uid-${name}` }],
    },
    spec: { renewTime, leaseDurationSeconds: 30 },
  })
  const pod = (name: string, ips = ['10.0.0.2'], finished = false) => ({
    ...{ uid: `uid-${name}`, namespace: 'edgemesh-system', name, serviceAccount: 'edgemesh-server' },
    ...{ ips, hostIPs: [], containerPorts: [], sidecar: false, finished },
  })
  const now = Date.parse('2030-01-01T00:00:20Z')
  const [fresh, old] = ['2030-01-01T00:00:00.000000Z', '2029-12-31T23:59:00.000000Z']

  it.each([
    ['has a replica at the address of its pod', lease('b', fresh), pod('b'), [['b', address]]],
    ['leaves out one whose Lease has run out', lease('b', old), pod('b'), []],
    ['leaves out itself', lease('a', fresh), pod('a'), []],
    ['leaves out one whose pod has ended', lease('b', fresh), pod('b', ['10.0.0.2'], true), []],
    ['leaves out one whose pod has no address', lease('b', fresh), pod('b', []), []],
    ['leaves out one whose pod the catalogue does not know', lease('b', fresh), pod('c'), []],
  ])('%s', (_what, object, record, expected) => {
    const leases = [leaseRecord(object)].filter((l) => l !== undefined)
    expect([...replicasOf('a', leases, new Map([[record.uid, record]]), 20_004, now)]).toEqual(expected)
  })

  it('reads which pods a replica has', () => {
    const metadata = { name: 'edgemesh-presence-b-0', labels: { 'sidecar.edgemesh.io/presence': 'b' } }
    const endpoints = [{ targetRef: { kind: 'Pod', uid: 'u1' } }, {}]
    expect(presenceRecord({ metadata, endpoints })).toEqual({ replica: 'b', uids: ['u1'] })
    expect(presenceRecord({ metadata: { name: 'x' } })).toBeUndefined()
  })
})
