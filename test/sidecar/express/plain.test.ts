import { beforeEach, describe, expect, it } from 'vitest'
import { Ledger } from '../../../sidecar/express/ledger.ts'
import { endings } from '../../../sidecar/express/messages.ts'
import { PlainConnection } from '../../../sidecar/express/plain.ts'
import { Records } from '../../../sidecar/express/records.ts'
import type { Surroundings } from '../../../sidecar/express/surroundings.ts'
import { Windows } from '../../../sidecar/express/window.ts'
import { PipePool } from '../../../sidecar/shared/pump/lanes.ts'
import {
  close,
  closeWithReset,
  getsockopt,
  IPPROTO_TCP,
  recv,
  recvFlags,
  SHUT_WR,
  send,
  sendFlags,
  shutdown,
} from '../../../sidecar/shared/pump/libc.ts'
import { App, Bench, descriptors } from './bench.ts'

const TCP_INFO = 11
const MSG_OOB = 1
// In struct tcp_info, linux/tcp.h.
const [segmentsInAt, unsentAt] = [140, 144]

function infoOf(fd: number, at: number): number {
  const info = Buffer.alloc(232)
  getsockopt(fd, IPPROTO_TCP, TCP_INFO, info, Uint32Array.of(info.length))
  return info.readUInt32LE(at)
}

/** How many packets a connection has received. */
const packetsOf = (fd: number) => infoOf(fd, segmentsInAt)
/** How many bytes it waits to send. */
const unsentOf = (fd: number) => infoOf(fd, unsentAt)

function say(fd: number, text: string, flags = sendFlags): void {
  expect(send(fd, Buffer.from(text), text.length, flags)).toBe(text.length)
}

/** What has come since it was asked last: text, `end`, or `reset`; empty where nothing has. */
function hear(fd: number): string {
  const into = Buffer.alloc(1024)
  const count = recv(fd, into, into.length, recvFlags)
  if (count > 0) return into.toString('latin1', 0, count)
  return count === 0 ? 'end' : ''
}

describe('a connection in the clear', () => {
  let bench: Bench
  let endpoint: App
  /** The app's end, and ours. */
  let app: number
  let captured: number
  const ends: string[] = []

  beforeEach(async () => {
    bench = new Bench()
    endpoint = await App.listen()
    ;[app, captured] = await descriptors()
    ends.length = 0
  })

  function start(): void {
    const records = new Records((told) => {
      if (told.type === 'closed') ends.push(endings[told.figures[1] ?? 0]?.closeReason ?? '')
    })
    const around: Surroundings = {
      loop: bench.loop,
      pipes: new PipePool(0, () => undefined),
      ledger: new Ledger(),
      records,
      windows: new Windows(),
      jointOptions: () => ({ copies: true, closes: true }),
    }
    around.ledger.own(captured)
    const about = { direction: 'outbound', destination: 'endpoint', route: 'direct' } as const
    const target = { key: '', address: endpoint.address, about }
    const on = { punt: () => ends.push('punted'), end: () => records.flush() }
    expect(new PlainConnection(around, { fd: captured, flowKey: '', target }, on).start()).toBe(true)
  }

  /** The endpoint's end, once it has it. */
  function accepted(): number {
    let fd = -1
    bench.run(() => {
      fd = endpoint.accept()
      return fd >= 0
    })
    return fd
  }

  function heard(fd: number): string {
    let text = ''
    bench.run(() => {
      text = hear(fd)
      return text !== ''
    })
    return text
  }

  it('is made by two packets where the app has spoken already', () => {
    say(app, 'request')
    start()
    const fd = accepted()
    expect(heard(fd)).toBe('request')
    expect(packetsOf(fd)).toBe(2) // SYN; the last of the handshake with what is said
    for (const end of [app, fd]) close(end)
    bench.run(() => ends.length > 0)
  })

  it('is made though nobody speaks, so that the endpoint can', () => {
    start()
    const fd = accepted()
    expect(packetsOf(fd)).toBe(2)
    say(fd, 'welcome')
    expect(heard(app)).toBe('welcome')
    say(app, 'thanks')
    expect(heard(fd)).toBe('thanks')
    for (const end of [app, fd]) close(end)
    bench.run(() => ends.length > 0)
  })

  it.each([
    ['before it is made', true],
    ['after it is made', false],
  ])(
    'does not keep an endpoint waiting between a head and a body, where the app speaks %s',
    (_when, early) => {
      if (early) say(app, 'request')
      start()
      const fd = accepted()
      if (!early) {
        bench.turn(2)
        say(app, 'request')
      }
      expect(heard(fd)).toBe('request')
      say(fd, 'head')
      say(fd, 'body')
      let text = heard(app)
      // The kernel's own timer sends an acknowledgement after 40 ms: on a busy machine that may have been before we were here.
      if (text === 'head') expect(unsentOf(fd), 'the body waits in the endpoint').toBe(0)
      while (text.length < 8) text += heard(app)
      expect(text).toBe('headbody')
      for (const end of [app, fd]) close(end)
      bench.run(() => ends.length > 0)
    },
  )

  it('brings the last bytes of an endpoint and its end in one packet', () => {
    say(app, 'request')
    start()
    const fd = accepted()
    expect(heard(fd)).toBe('request')
    bench.turn(2)
    const before = packetsOf(app)
    say(fd, 'answer')
    close(fd)
    expect([heard(app), heard(app)]).toEqual(['answer', 'end'])
    expect(packetsOf(app) - before).toBe(1)
    close(app)
    bench.run(() => ends.length > 0)
    expect(ends).toEqual(['closed'])
  })

  it('goes on the other way after one has ended', () => {
    say(app, 'request')
    start()
    const fd = accepted()
    shutdown(app, SHUT_WR)
    expect([heard(fd), heard(fd)]).toEqual(['request', 'end'])
    for (const text of ['a', 'b', 'c']) {
      say(fd, text)
      expect(heard(app)).toBe(text)
    }
    close(fd)
    expect(heard(app)).toBe('end')
    close(app)
    bench.run(() => ends.length > 0)
    expect(ends).toEqual(['closed'])
  })

  it('loses nothing behind urgent data, which cuts reads short', () => {
    start()
    const fd = accepted()
    bench.turn(2)
    say(fd, 'before')
    say(fd, '!', sendFlags | MSG_OOB)
    say(fd, 'behind')
    shutdown(fd, SHUT_WR)
    let text = ''
    while (!text.endsWith('end')) text += heard(app)
    expect(text.replace('!', '')).toBe('beforebehindend')
    for (const end of [app, fd]) close(end)
    bench.run(() => ends.length > 0)
  })

  it.each([
    ['answered', 'answer'],
    ['said nothing', ''],
  ])('tells the app when an endpoint that has %s resets it after its end', (_what, answer) => {
    say(app, 'request')
    start()
    const fd = accepted()
    bench.turn(2)
    if (answer) say(fd, answer)
    shutdown(fd, SHUT_WR)
    let text = ''
    bench.run(() => {
      text += hear(app)
      return text.endsWith('end')
    })
    expect(text).toBe(`${answer}end`)
    closeWithReset(fd)
    bench.run(() => ends.length > 0)
    expect(ends).toEqual(['reset by peer'])
    close(app)
  })

  it('is reset when the endpoint resets it', () => {
    say(app, 'request')
    start()
    const fd = accepted()
    bench.turn(2)
    say(fd, 'part')
    closeWithReset(fd)
    bench.run(() => ends.length > 0)
    expect(ends).toEqual(['reset by peer'])
    close(app)
  })
})
