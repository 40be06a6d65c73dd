import { connect, createServer } from 'node:net'
import { constants } from 'node:os'
import { describe, expect, it, onTestFinished } from 'vitest'
import { interceptorSocket, loopbackSocket, mayBindToDevice } from '../../../sidecar/interception/loopback.ts'

describe('a socket on all of loopback', () => {
  /** `connected`, or how it failed. */
  const dial = (host: string, port: number) => {
    const { promise, resolve } = Promise.withResolvers<string>()
    const socket = connect(port, host, () => resolve('connected'))
    socket.once('error', (error) => resolve('code' in error ? String(error.code) : error.message))
    return promise.finally(() => socket.destroy())
  }

  it('is reached at each of its addresses, and once only', async () => {
    const server = createServer()
    onTestFinished(() => void server.close())
    const fd = loopbackSocket(0)
    await new Promise<void>((resolve) => server.listen({ fd }, resolve))
    const address = server.address()
    const port = typeof address === 'object' ? (address?.port ?? 0) : 0
    expect(
      await Promise.all(['127.0.0.1', '127.64.0.0', '127.127.255.255'].map((a) => dial(a, port))),
    ).toEqual(['connected', 'connected', 'connected'])
    expect(loopbackSocket(port)).toBe(-constants.errno.EADDRINUSE)
    expect(() => interceptorSocket(port)).toThrow(expect.objectContaining({ code: 'EADDRINUSE' }))
  })

  it.each([
    ['6.18.5', true],
    ['5.7.0-generic', true],
    ['5.15.0-1-amd64', true],
    ['5.6.19', false],
    ['4.19.0-gvisor', false],
    ['unknown', false],
  ])('may be made without privileges on kernel %s: %s', (release, may) => {
    expect(mayBindToDevice(release)).toBe(may)
  })
})
