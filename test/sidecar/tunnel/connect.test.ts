import { describe, expect, it } from 'vitest'
import { authorityOf, decideInbound, failureOf, statusOf } from '../../../sidecar/tunnel/connect.ts'

const self = {
  podIPs: ['10.244.1.2', 'fd00:10:244:1::2'],
  declaredPorts: [8080, 20006],
  ownPorts: [40001, 20006],
}

describe('what a CONNECT may reach', () => {
  it.each([
    ['a declared port of the pod', 'CONNECT', '10.244.1.2:8080', { host: '10.244.1.2', port: 8080 }],
    ['its IPv6 address', 'CONNECT', '[fd00:10:244:1::2]:8080', { host: 'fd00:10:244:1::2', port: 8080 }],
  ])('is %s', (_title, method, authority, decision) => {
    expect(decideInbound(method, authority, self)).toEqual(decision)
  })

  it.each([
    ['another method', 'GET', '10.244.1.2:8080'],
    ['no method', undefined, '10.244.1.2:8080'],
    ['no authority', 'CONNECT', undefined],
    ['another address', 'CONNECT', '10.244.1.3:8080'],
    ['loopback', 'CONNECT', '127.0.0.1:8080'],
    ['a mapped IPv4 address', 'CONNECT', '[::ffff:10.244.1.2]:8080'],
    ['an undeclared port', 'CONNECT', '10.244.1.2:8081'],
    ['our own port, even when declared', 'CONNECT', '10.244.1.2:20006'],
    ['port 0', 'CONNECT', '10.244.1.2:0'],
    ['a port with leading zeros', 'CONNECT', '10.244.1.2:08080'],
    ['a port out of range', 'CONNECT', '10.244.1.2:99999'],
    ['a name', 'CONNECT', 'localhost:8080'],
    ['user info', 'CONNECT', 'x@10.244.1.2:8080'],
    ['a path', 'CONNECT', '10.244.1.2:8080/'],
    ['an unclosed bracket', 'CONNECT', '[fd00:10:244:1::2:8080'],
    ['line breaks', 'CONNECT', '10.244.1.2:8080\r\n'],
  ])('is not %s', (_title, method, authority) => {
    expect(decideInbound(method, authority, self)).toMatchObject({ refuse: 'forbidden' })
  })

  it('maps every failure to a status of its own and back', () => {
    const failures = ['forbidden', 'refused', 'timeout', 'unreachable', 'limit', 'stopping'] as const
    expect(failures.map((f) => failureOf(statusOf(f)))).toEqual(failures)
    expect(new Set(failures.map(statusOf)).size).toBe(failures.length)
    expect(failureOf(500)).toBe('unreachable')
  })

  it('writes authorities that it can read', () => {
    for (const address of self.podIPs) {
      expect(decideInbound('CONNECT', authorityOf(address, 8080), self)).toEqual({
        host: address,
        port: 8080,
      })
    }
  })
})
