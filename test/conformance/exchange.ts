import { connect, type Socket } from 'node:net'
import { descriptorOf } from '#shared/descriptor.ts'
import { tcpState } from '#shared/pump/tcp.ts'
import { receiveAll, SeededBytes, SeededCheck, sendSeeded } from './traffic.ts'

/** Where a traffic server of the suite (server.ts) is reached. */
export interface Target {
  host: string
  port: number
}

const stuckMs = 60_000

/** Connects and says what the server is to do with the connection. */
export async function open({ host, port }: Target, line: string): Promise<Socket> {
  const socket = connect({ host, port, allowHalfOpen: true, noDelay: true })
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  socket.once('connect', resolve)
  socket.once('error', reject)
  await promise
  socket.on('error', () => undefined)
  socket.write(`${line}\n`)
  return socket
}

/** One echoed exchange of some kilobytes, then a FIN each way. */
export async function echoOnce(target: Target, seed: number): Promise<boolean> {
  const socket = await open(target, 'echo')
  const sent = new SeededBytes(seed).block(4_096)
  socket.end(sent)
  const received = await receiveAll(socket)
  socket.destroy()
  return received.by === 'end' && received.bytes === sent.length
}

export interface Exchange {
  kind: 'both' | 'break-here' | 'break-there'
  seed: number
  up: number
  down: number
  breakAfter: number
}

/** One connection with bytes both ways, to its end or until one side breaks it. Throws at a wrong byte or end. */
export async function exchange(
  target: Target,
  { kind, seed, up, down, breakAfter }: Exchange,
): Promise<string> {
  const socket = await open(target, `${kind === 'break-there' ? 'break' : 'duplex'} ${down} ${seed}`)
  const check = new SeededCheck(down, seed)
  const { promise, resolve, reject } = Promise.withResolvers<string>()
  const timer = setTimeout(() => reject(new Error(`stuck at ${check.correct} of ${down}`)), stuckMs)
  socket.on('data', (chunk) => {
    try {
      check.take(chunk)
    } catch (error) {
      reject(error)
    }
    if (kind !== 'break-here' || check.correct < breakAfter) return
    socket.resetAndDestroy()
    resolve('broken here')
  })
  let state = 0
  socket.once('end', () => {
    state = tcpState(descriptorOf(socket) ?? -1)
    resolve('ended')
  })
  socket.once('close', () => resolve('reset'))
  socket.resume()
  const sending = sendSeeded(socket, up, seed + 1).catch(() => undefined)
  void sending.then(() => socket.end())
  try {
    const outcome = await promise
    const sha256 = await sending
    if (outcome === 'ended' && (check.correct !== down || check.rest !== `${up} ${sha256}\n`))
      throw new Error(
        `${check.correct} bytes came, and then ${JSON.stringify(check.rest)}; ${sha256 === undefined ? 'not all' : 'all'} was sent, TCP state ${state}`,
      )
    const expected =
      kind === 'break-there' ? ['reset'] : kind === 'both' ? ['ended'] : ['broken here', 'ended']
    if (!expected.includes(outcome)) throw new Error(`it was ${outcome} after ${check.correct} bytes`)
    return outcome
  } finally {
    clearTimeout(timer)
    socket.destroy()
  }
}
