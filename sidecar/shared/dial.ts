import { connect, type Socket } from 'node:net'
import { codeOf, EdgeMeshError, type ErrorCode, sentenceOf } from './errors.ts'

export interface DialOptions {
  host: string
  port: number
  deadlineMs: number
  signal: AbortSignal
  /** For an app's own bytes, whose directions end by themselves; a tunnel must close as soon as its peer does. */
  allowHalfOpen: boolean
}

/**
 * Connects a TCP socket, or fails with `refused`, `timeout` or `unreachable` within the
 * deadline. An aborted wait rejects with the signal's reason.
 */
export function dial({ host, port, deadlineMs, signal, allowHalfOpen }: DialOptions): Promise<Socket> {
  if (signal.aborted) return Promise.reject(signal.reason)
  const { promise, resolve, reject } = Promise.withResolvers<Socket>()
  const socket = connect({
    host,
    port,
    allowHalfOpen,
    noDelay: true,
    keepAlive: true,
    keepAliveInitialDelay: 30_000,
  })
  const give = (error: unknown) => {
    reject(error)
    socket.destroy()
  }
  const late = () => give(failure(host, port, 'timeout', `no answer within ${deadlineMs} ms`))
  const timer = setTimeout(late, deadlineMs)
  const onAbort = () => give(signal.reason)
  signal.addEventListener('abort', onAbort, { once: true })
  const onError = (error: Error) =>
    give(failure(host, port, connectFailureOf(codeOf(error)), sentenceOf(error), error))
  socket.once('error', onError)
  socket.once('connect', () => {
    socket.off('error', onError)
    resolve(socket)
  })
  return promise.finally(() => {
    clearTimeout(timer)
    signal.removeEventListener('abort', onAbort)
  })
}

function failure(
  host: string,
  port: number,
  code: 'refused' | 'timeout' | 'unreachable',
  why: string,
  cause?: unknown,
): EdgeMeshError {
  return new EdgeMeshError(code, `Cannot connect to ${host} port ${port}: ${why}.`, cause)
}

/** The code of ours for a failed TCP connect; what the dialled side says over the wire and shows to the app. */
export function connectFailureOf(code: string): Extract<ErrorCode, 'refused' | 'timeout' | 'unreachable'> {
  if (code === 'ECONNREFUSED' || code === 'ECONNRESET') return 'refused'
  if (code === 'ETIMEDOUT' || code === 'timeout') return 'timeout'
  return 'unreachable'
}
