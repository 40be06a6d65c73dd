import { type ChildProcess, spawn } from 'node:child_process'
import { release } from 'node:os'
import { extname, join } from 'node:path'
import { EdgeMeshError } from '#shared/errors.ts'
import type { Destination } from '../services/destination.ts'

const deadlines = {
  /** How long the child may take until it asks, in ms: on a starved node a start takes seconds, which says nothing. */
  startMs: 30_000,
  /** How long the kernel may take to answer, in ms; it takes well under one where it works. */
  answerMs: 3_000,
}

/** What the child says before each call. */
export const asking = 'asking'

export type ProbeResult =
  | { outcome: 'works'; ms: number }
  /** A sidecar already listens here, so this kernel has answered before (init containers rerun). */
  | { outcome: 'already-running' }

/** The child: connects through the rules and asks the kernel, see probe-child.ts. */
export function probeCommand(targets: readonly Destination[]): string[] {
  const child = join(import.meta.dirname, `probe-child${extname(import.meta.filename)}`) // .js in the image
  return [process.execPath, child, ...targets.map((t) => `${t.address} ${t.port}`)]
}

/**
 * Proves once that a captured connection's destination can be recovered, in a child: on kernels 4.15.x the call
 * hangs in state D, where nothing can kill or reap it, so the child is left behind and we go on without it.
 * `kernel-unfit` is the refusal.
 */
export async function probeKernel(
  command: readonly string[],
  { startMs, answerMs } = deadlines,
): Promise<ProbeResult> {
  const [program = '', ...args] = command
  const started = performance.now()
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] })
  const answer = await lastWord(child, startMs, answerMs)
  child.kill('SIGKILL')
  child.stdout?.destroy()
  child.unref()
  if (answer === 'works') return { outcome: 'works', ms: performance.now() - started }
  if (answer === 'already-running') return { outcome: 'already-running' }
  const call = 'getsockopt(SO_ORIGINAL_DST)'
  const what = {
    asking: `${call} did not answer within ${answerMs / 1_000} s`,
    silent: `${call} could not be tried within ${startMs / 1_000} s`,
  }[answer]
  throw new EdgeMeshError(
    'kernel-unfit',
    `Cannot inject this pod: ${what ?? `${call} does not work (${answer})`} on kernel ${release()}. Upgrade the node's kernel to 4.19.12 or later, or label the pod sidecar.edgemesh.io/inject="false".`,
  )
}

/** The child's last line in time, or how it ended; `silent` when it never came to ask, `asking` when that hangs. */
function lastWord(child: ChildProcess, startMs: number, answerMs: number): Promise<string> {
  const { promise, resolve } = Promise.withResolvers<string>()
  let timer = setTimeout(() => resolve('silent'), startMs)
  let text = ''
  child.stdout?.on('data', (chunk) => {
    text += chunk
    const word = text.trimEnd().split('\n').at(-1) ?? ''
    if (!text.endsWith('\n')) return
    if (word !== asking) resolve(word)
    clearTimeout(timer)
    timer = setTimeout(() => resolve(word), answerMs)
  })
  child.once('error', (error) => resolve(error.message))
  child.once('close', (code, signal) => resolve(`the probe ended with ${signal ?? `exit code ${code}`}`))
  return promise.finally(() => clearTimeout(timer))
}
