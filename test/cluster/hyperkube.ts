import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { labError } from '../lab/processes.ts'
import { mustRun, run } from '../lab/shell.ts'
import { cached, type Log } from './cache.ts'

const sources = join(import.meta.dirname, 'hyperkube')
const buildDeadlineMs = 45 * 60_000
const heartbeatMs = 30_000

/** Path of the binary with all of Kubernetes' programs; a cold build takes about eight minutes on two cores. */
export async function hyperkube(log: Log): Promise<string> {
  const from = ['go.mod', 'go.sum', 'main.go'].map((name) => readFileSync(join(sources, name)))
  const folder = await cached({ kind: 'hyperkube', from, make: (to) => build(to, log) }, log)
  return join(folder, 'hyperkube')
}

/**
 * Flags of the linker that give the programs their version. Without it they say v0.0.0-master, and kubectl refuses
 * to compare itself with the server.
 */
export function versionFlags(goMod: string): string {
  const version = /\sk8s\.io\/kubernetes (v(\d+)\.(\d+)\.\S+)/.exec(goMod)
  if (version === null) throw labError('Cannot build Kubernetes: go.mod requires no k8s.io/kubernetes.')
  const [, whole, major, minor] = version
  const values = { gitVersion: whole, gitMajor: major, gitMinor: minor, gitTreeState: 'clean' }
  const settings = Object.entries(values).map(([k, v]) => `-X k8s.io/component-base/version.${k}=${v}`)
  return ['-s', '-w', ...settings].join(' ')
}

async function build(folder: string, log: Log): Promise<void> {
  const go = await findGo()
  const step = 'building Kubernetes from the Go module proxy (about 8 minutes, once)'
  log(step)
  const heartbeat = setInterval(() => log(step), heartbeatMs)
  try {
    const flags = versionFlags(readFileSync(join(sources, 'go.mod'), 'utf8'))
    const output = join(folder, 'hyperkube')
    await mustRun(['nice', go, 'build', '-mod=readonly', '-ldflags', flags, '-o', output, '.'], {
      cwd: sources,
      timeoutMs: buildDeadlineMs,
    })
  } catch (error) {
    throw labError('Cannot build Kubernetes: "go build" in test/cluster/hyperkube failed.', error)
  } finally {
    clearInterval(heartbeat)
  }
}

async function findGo(): Promise<string> {
  for (const go of ['go', '/usr/local/go/bin/go']) {
    const found = await run([go, 'version']).catch(() => undefined) // not there
    if (found?.code === 0) return go
  }
  throw labError(
    'Cannot build Kubernetes: there is no "go" on the PATH nor in /usr/local/go/bin. Install Go 1.26 or newer from https://go.dev/dl.',
  )
}
