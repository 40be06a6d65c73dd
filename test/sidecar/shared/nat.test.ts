import { describe, expect, it } from 'vitest'
import { natOf, remoteOf } from '../../../sidecar/shared/nat.ts'

const podIPs = ['10.0.0.1']
const sighting = (address: string, port: number) => ({ localPort: 40_000, observed: { address, port } })

describe('what sightings say of a NAT', () => {
  it.each([
    ['nothing without one', [], undefined],
    [
      'there is none when the pod is seen as it is',
      [sighting('10.0.0.1', 40_000)],
      { mapping: 'none', portPreserved: true, proven: true },
    ],
    [
      'one that keeps the port is taken for independent',
      [sighting('203.0.113.7', 40_000)],
      { mapping: 'independent', portPreserved: true, proven: false },
    ],
    [
      'one that changes the port is taken for dependent',
      [sighting('203.0.113.7', 1_234)],
      { mapping: 'dependent', portPreserved: false, proven: false },
    ],
    [
      'the same from two places is independent, whatever the port',
      [sighting('203.0.113.7', 1_234), sighting('203.0.113.7', 1_234)],
      { mapping: 'independent', portPreserved: false, proven: true },
    ],
    [
      'another port at another place is dependent, even if one was kept',
      [sighting('203.0.113.7', 40_000), sighting('203.0.113.7', 1_234)],
      { mapping: 'dependent', portPreserved: true, proven: true },
    ],
    [
      'another address at another place is dependent',
      [sighting('203.0.113.7', 40_000), sighting('203.0.113.8', 40_000)],
      { mapping: 'dependent', portPreserved: true, proven: true },
    ],
  ])('%s', (_title, sightings, nat) => {
    expect(natOf(sightings, podIPs)).toEqual(nat)
  })

  it('reads IPv4 addresses off sockets of both families', () => {
    expect(remoteOf({ remoteAddress: '::ffff:192.0.2.1', remotePort: 7 })).toEqual({
      address: '192.0.2.1',
      port: 7,
    })
    expect(remoteOf({ remoteAddress: 'fd00::1', remotePort: 7 })).toEqual({ address: 'fd00::1', port: 7 })
    expect(remoteOf({})).toBeUndefined()
  })
})
