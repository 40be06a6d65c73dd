import { spawn } from 'node:child_process'
import { text } from 'node:stream/consumers'
import { EdgeMeshError } from '#shared/errors.ts'
import { withDeadline } from '#shared/lifecycle.ts'
import { type Family, holdsAny, holdsOurs } from './rules.ts'

export type BackendName = 'nft' | 'legacy'
export const backendNames: readonly BackendName[] = ['nft', 'legacy']

/** How long one iptables program may take, in ms; it waits up to 5 s for the lock of another. */
const programDeadlineMs = 10_000

/** What iptables-save of each back end shows of this network namespace, or why it cannot be used. */
export type Probe = { saved: string } | { failure: string }

/**
 * Which back end to write with. Two at once confuse everyone who looks (EdgeMesh #30 #155, linkerd #7749), so:
 * where our chains are; else where any rules are; else nft; else whichever works.
 */
export function chooseBackend(probes: Record<BackendName, Probe>, wanted: BackendName | 'auto'): BackendName {
  const works = (name: BackendName) => 'saved' in probes[name]
  const shows = (name: BackendName, test: (saved: string) => boolean) => {
    const probe = probes[name]
    return 'saved' in probe && test(probe.saved)
  }
  const chosen =
    wanted === 'auto'
      ? (backendNames.find((n) => shows(n, holdsOurs)) ??
        backendNames.find((n) => shows(n, holdsAny)) ??
        backendNames.find(works))
      : works(wanted)
        ? wanted
        : undefined
  if (chosen !== undefined) return chosen
  const tried = wanted === 'auto' ? backendNames : [wanted]
  const told = tried.map((n) => `${n}: ${(probes[n] as { failure?: string }).failure}`).join('; ')
  throw new EdgeMeshError(
    'rules-failed',
    `Cannot write the EDGE-MESH rules: no iptables back end works here (${told}). The init container needs the capabilities NET_ADMIN and NET_RAW.`,
  )
}

/** The iptables programs of one back end and family. */
export class Iptables {
  readonly #prefix: string

  constructor(backend: BackendName, family: Family) {
    this.#prefix = `${family === 4 ? 'iptables' : 'ip6tables'}-${backend}`
  }

  /** Tables nat and raw, as iptables-save prints them. */
  async save(): Promise<string> {
    const nat = await this.#run('save', ['-t', 'nat'])
    return `${nat}${await this.#run('save', ['-t', 'raw'])}`
  }

  /** Applies restore input at once or not at all, leaving other chains alone. */
  async restore(input: string): Promise<void> {
    await this.#run('restore', ['--noflush', '--wait=5'], input)
  }

  async probe(): Promise<Probe> {
    try {
      return { saved: await this.save() }
    } catch (error) {
      return { failure: error instanceof Error ? error.message : String(error) }
    }
  }

  async #run(program: 'save' | 'restore', args: string[], input = ''): Promise<string> {
    const command = `${this.#prefix}-${program}`
    const child = spawn(command, args, { stdio: ['pipe', 'pipe', 'pipe'] })
    const { promise: exit, resolve, reject } = Promise.withResolvers<number | null>()
    child.once('error', (error) =>
      reject(new EdgeMeshError('rules-failed', `Cannot run ${command}: ${error.message}.`, error)),
    )
    child.once('close', resolve)
    child.stdin.on('error', () => undefined) // it may exit before it has read all; its exit code says so
    child.stdin.end(input)
    try {
      const [code, out, err] = await withDeadline(
        Promise.all([exit, text(child.stdout), text(child.stderr)]),
        programDeadlineMs,
        `run ${command}`,
      )
      if (code === 0) return out
      const why =
        err.split('\n').find((line) => line.trim() !== '' && !line.startsWith('#')) ?? `exit code ${code}`
      throw new EdgeMeshError('rules-failed', `Cannot run ${command}: ${why.trim()}`)
    } finally {
      child.kill('SIGKILL')
    }
  }
}
