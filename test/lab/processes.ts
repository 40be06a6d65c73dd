import { spawn } from 'node:child_process'
import {
  chownSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { EdgeMeshError } from '#shared/errors.ts'
import { SIDECAR_UID } from '#shared/ports.ts'
import { inNamespace } from './network.ts'
import { mustRun, run } from './shell.ts'

export const labsFolder = '/run/edgemesh-lab'
/** Where every process of a lab sees the project: the clone itself may be closed to uid 1337. */
export const appFolder = join(labsFolder, 'app')
const project = join(import.meta.dirname, '../..')
/** Flags and environment of the sidecar's process, as the injector sets them: less memory for every pod. */
export const sidecarFlags = ['--max-semi-space-size=1', '--v8-pool-size=1']
export const sidecarEnvironment = { MALLOC_ARENA_MAX: '1' }
/** Those of the server, as its manifest sets them. */
export const serverFlags = ['--max-semi-space-size=4']
export const serverEnvironment = { MALLOC_ARENA_MAX: '1' }
const readyDeadlineMs = 60_000
const stopDeadlineMs = 45_000
const isolated = ['unshare', '--mount', '--propagation', 'private', 'sh', '-c']

/** Where a process runs: a namespace, and in a pod its own resolv.conf. */
export interface Place {
  namespace: string
  resolvConf: string | undefined
}

export interface Daemon {
  /** Names its log and its pid file. */
  part: string
  argv: readonly string[]
  /** What its log says once it serves. */
  ready: string
  uid?: number
  env?: Record<string, string>
  /** A small disk of its own. */
  disk?: Disk
}

/** Seen by one process only, and gone with it. */
export interface Disk {
  folder: string
  kib: number
}

export type Signal = 'TERM' | 'KILL' | 'STOP' | 'CONT'

export function labError(message: string, cause?: unknown): EdgeMeshError {
  return new EdgeMeshError('lab-failed', message, cause)
}

/** The command line of a script of this project, inside the lab: the path is from the project's root. */
export function nodeCommand(script: string, ...args: string[]): string[] {
  return [`${appFolder}/node_modules/.bin/node`, `${appFolder}/${script}`, ...args]
}

/** The command line that runs `argv` in a place; other users than root get no capability at all. */
export function commandIn(
  { namespace, resolvConf }: Place,
  argv: readonly string[],
  uid = 0,
  disk?: Disk,
): string[] {
  const mounts = [
    `mount --bind ${project} ${appFolder}`,
    ...(resolvConf === undefined ? [] : [`mount --bind ${resolvConf} /etc/resolv.conf`]),
    ...(disk === undefined ? [] : [`mount -t tmpfs -o size=${disk.kib}k,uid=${uid} tmpfs ${disk.folder}`]),
    `export NODE_COMPILE_CACHE=${appFolder}/.cache/compile`,
    'exec "$@"',
  ]
  const drop = ['--clear-groups', '--no-new-privs', '--inh-caps=-all', '--bounding-set=-all']
  const user = uid === 0 ? [] : ['setpriv', `--reuid=${uid}`, `--regid=${uid}`, ...drop]
  return inNamespace(namespace, [...isolated, mounts.join(' && '), 'sh', ...user, ...argv])
}

export function logIn(folder: string, part: string): string {
  return join(folder, 'log', `${part}.log`)
}

/** The pid of a daemon: every program on its command line is an exec, so it is the daemon's own. */
export function pidIn(folder: string, part: string): number {
  return Number(readFileSync(join(folder, 'pid', part), 'utf8'))
}

/** Starts a process that outlives us and logs to a file; resolves once it serves. */
export async function startIn(folder: string, place: Place, daemon: Daemon): Promise<void> {
  const log = logIn(folder, daemon.part)
  const from = existsSync(log) ? readFileSync(log).length : 0
  const out = openSync(log, 'a')
  // For the program alone: what makes the place is root, and would leave things that the program may not open.
  const { LD_PRELOAD: preload, ...own } = daemon.env ?? {}
  const argv = preload === undefined ? daemon.argv : ['env', `LD_PRELOAD=${preload}`, ...daemon.argv]
  const [program = '', ...args] = commandIn(place, argv, daemon.uid, daemon.disk)
  const env = { PATH: process.env.PATH, ...own }
  const child = spawn(program, args, { stdio: ['ignore', out, out], detached: true, env })
  child.unref()
  let exit: number | null | undefined
  child.once('exit', (code) => {
    exit = code
  })
  writeFileSync(join(folder, 'pid', daemon.part), String(child.pid))
  for (const until = Date.now() + readyDeadlineMs; ; ) {
    const said = readFileSync(log).subarray(from).toString()
    if (said.includes(daemon.ready)) return
    if (exit !== undefined || Date.now() > until) {
      const why =
        exit === undefined ? `not ready after ${readyDeadlineMs / 1_000} s` : `it ended with ${exit}`
      const tail = said.trim().split('\n').slice(-8).join('\n')
      throw labError(`Cannot start ${daemon.part}: ${why}. It said:\n${tail}`)
    }
    await new Promise((resolve) => setTimeout(resolve, 25))
  }
}

/** TERM and KILL wait for the end of the process. */
export async function signalIn(folder: string, part: string, signal: Signal): Promise<void> {
  const pid = pidIn(folder, part)
  await run(['kill', `-${signal}`, String(pid)])
  if (signal !== 'TERM' && signal !== 'KILL') return
  for (const until = Date.now() + stopDeadlineMs; isAlive(pid); ) {
    if (Date.now() > until)
      throw labError(`Cannot stop ${part}: it still runs ${stopDeadlineMs / 1_000} s after SIG${signal}.`)
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}

/** A zombie has no command line any more. */
function isAlive(pid: number): boolean {
  const path = `/proc/${pid}/cmdline`
  return existsSync(path) && readFileSync(path).length > 0
}

/**
 * Node strips the types of our sources at each start, which costs 18 MB that the bundle of an image does not: one
 * throw-away start of everything, as the sidecar's uid, leaves the stripped code in Node's compile cache.
 */
export async function warmCompileCache(): Promise<void> {
  const cache = join(project, '.cache/compile')
  mkdirSync(cache, { recursive: true })
  chownSync(cache, SIDECAR_UID, SIDECAR_UID)
  const marker = join(project, `.cache/warmed-${newestSource()}${sidecarFlags.join('')}`)
  if (existsSync(marker)) return
  const user = `setpriv --reuid=${SIDECAR_UID} --regid=${SIDECAR_UID} --clear-groups`
  const node = `${user} "$2/node_modules/.bin/node" ${sidecarFlags.join(' ')}`
  const script = [
    'mount --bind "$1" "$2"',
    'export NODE_COMPILE_CACHE="$2/.cache/compile"',
    `${node} "$2/test/lab/warm.ts"`,
    `${node} "$2/sidecar/main.ts" version`,
    `${node} "$2/server/main.ts" --help`,
  ]
  await mustRun([...isolated, script.join(' && '), 'sh', project, appFolder])
  writeFileSync(marker, '')
}

/** What the image runs instead of the sources. */
export const bundledScripts: Readonly<Record<string, string>> = {
  'sidecar/main.ts': '.cache/bundle/sidecar.js',
  'server/main.ts': '.cache/bundle/server.js',
}

export async function makeBundle(): Promise<void> {
  const folder = join(project, '.cache/bundle')
  rmSync(folder, { recursive: true, force: true })
  const { bundle } = await import('../../manifests/image/bundle.ts') // esbuild is loaded only where it is used
  await bundle(folder)
}

/** Changes whenever a source of the lab's processes does. */
function newestSource(): number {
  const files = ['sidecar', 'server'].flatMap((part) =>
    readdirSync(join(project, part), { recursive: true, encoding: 'utf8' }).map((name) =>
      join(project, part, name),
    ),
  )
  return Math.max(...files.map((file) => Math.floor(statSync(file).mtimeMs)))
}
