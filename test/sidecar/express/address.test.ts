import { expect, it } from 'vitest'
import { flowKeyOf, socketAddress } from '../../../sidecar/express/address.ts'
import { parseSocketAddress } from '../../../sidecar/interception/original-destination.ts'

it.each([
  ['10.96.0.12', 2701],
  ['255.255.255.255', 65_535],
  ['fd00:10:96::c', 2702],
  ['::', 1],
  ['2001:db8:1:2:3:4:5:6', 443],
  ['1::', 80],
])('%s port %i becomes a socket address, and that the same again', (address, port) => {
  const bytes = socketAddress({ address, port })
  expect(bytes && parseSocketAddress(bytes, address.includes(':') ? 6 : 4)).toEqual({ address, port })
})

it.each(['web', '10.96.0', 'fe80::1%eth0', ''])('"%s" becomes none', (address) => {
  expect(socketAddress({ address, port: 80 })).toBeUndefined()
})

it.each([
  ['another port', '10.96.0.12', 2702],
  ['another address', '10.96.0.13', 2701],
  ['another family', '::ffff:10.96.0.12', 2701],
])('a flow is not found by %s', (_what, address, port) => {
  const keyOf = (address: string, port: number) => {
    const bytes = socketAddress({ address, port })
    return bytes && flowKeyOf(bytes, bytes.length === 16 ? 4 : 6)
  }
  expect(keyOf(address, port)).not.toEqual(keyOf('10.96.0.12', 2701))
  expect(keyOf('10.96.0.12', 2701)).toEqual(keyOf('10.96.0.12', 2701))
})
