import { type ChildProcess, spawn } from 'node:child_process'
import { release } from 'node:os'
import { extname, join } from 'node:path'
import { EdgeMeshError } from '#shared/errors.ts'
import type { Destination } from '../services/destination.ts'

/** How long the kernel may take to answer; it takes well under a millisecond where it works. */
const deadlineMs = 3_000

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
export async function probeKernel(command: readonly string[]): Promise<ProbeResult> {
  const [program = '', ...args] = command
  const started = performance.now()
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] })
  const answer = await firstLine(child)
  child.kill('SIGKILL')
  child.stdout?.destroy()
  child.unref()
  if (answer === 'works') return { outcome: 'works', ms: performance.now() - started }
  if (answer === 'already-running') return { outcome: 'already-running' }
  const what =
    answer === undefined
      ? `getsockopt(SO_ORIGINAL_DST) did not answer within ${deadlineMs / 1_000} s`
      : `getsockopt(SO_ORIGINAL_DST) does not work (${answer})`
  throw new EdgeMeshError(
    'kernel-unfit',
    `Cannot inject this pod: ${what} on kernel ${release()}. Upgrade the node's kernel to 4.19.12 or later, or label the pod sidecar.edgemesh.io/inject="false".`,
  )
}

/** What the child says, `exited` when it ends without a word, undefined at the deadline. */
function firstLine(child: ChildProcess): Promise<string | undefined> {
  const { promise, resolve } = Promise.withResolvers<string | undefined>()
  const timer = setTimeout(() => resolve(undefined), deadlineMs)
  let text = ''
  child.stdout?.on('data', (chunk) => {
    text += chunk
    if (text.includes('\n')) resolve(text.split('\n')[0])
  })
  child.once('error', (error) => resolve(error.message))
  child.once('close', (code, signal) => resolve(`the probe ended with ${signal ?? `exit code ${code}`}`))
  return promise.finally(() => clearTimeout(timer))
}
