import { spawn } from 'node:child_process'
import { existsSync, openSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { EdgeMeshError } from '#shared/errors.ts'
import { labError, logIn, pidIn } from '../lab/processes.ts'
import { commandInCgroup } from './cgroups.ts'

export interface Daemon {
  /** Names its log and its pid file in the cluster's folder. */
  part: string
  cgroup: string
  argv: readonly string[]
  /** Starts it by a program that forks and waits, as nsenter into a pid namespace and unshare do. */
  forks?: boolean
}

export interface Wait {
  /** As in "Cannot ...". */
  what: string
  folder: string
  /** Whose log tells why it did not come true. */
  part: string
  deadlineMs?: number
}

const tailLines = 12

/** Starts a program that outlives us and logs to a file. */
export async function startDaemon(folder: string, { part, cgroup, argv, forks }: Daemon): Promise<void> {
  const out = openSync(logIn(folder, part), 'a')
  const [program = '', ...args] = commandInCgroup(cgroup, argv)
  const child = spawn(program, args, { stdio: ['ignore', out, out], detached: true })
  child.unref()
  const { pid } = child
  if (pid === undefined) throw labError(`Cannot start ${part}: there is no process.`)
  writePid(folder, part, pid)
  if (forks !== true) return
  const own = await until({ what: `start ${part}`, folder, part, deadlineMs: 5_000 }, () => onlyChild(pid))
  writePid(folder, part, own)
}

/** Polls until `check` gives a value; a program that has ended meanwhile is an error, and so is the deadline. */
export async function until<T>(
  { what, folder, part, deadlineMs = 30_000 }: Wait,
  check: () => T | undefined | Promise<T | undefined>,
): Promise<T> {
  for (const end = Date.now() + deadlineMs; ; await delay(20)) {
    const value = await check()
    if (value !== undefined) return value
    const ended = !isRunning(pidIn(folder, part))
    if (ended || Date.now() > end) {
      const why = ended ? `${part} has ended` : `it is not so after ${deadlineMs / 1_000} s`
      throw labError(`Cannot ${what}: ${why}. ${tailOf(folder, part)}`)
    }
  }
}

/** Adds the end of a program's log to whatever goes wrong. */
export async function blaming<T>(folder: string, part: string, what: string, work: Promise<T>): Promise<T> {
  try {
    return await work
  } catch (error) {
    if (error instanceof EdgeMeshError) throw error
    throw labError(`Cannot ${what}. ${tailOf(folder, part)}`, error)
  }
}

/** Zombies do not run: nobody may have come yet to collect them. */
export function isRunning(pid: number): boolean {
  const state = readIfThere(`/proc/${pid}/stat`)
  return state !== undefined && !/\) [ZX] /.test(state)
}

function tailOf(folder: string, part: string): string {
  const log = logIn(folder, part)
  const lines = (readIfThere(log) ?? '').trimEnd().split('\n').slice(-tailLines).join('\n')
  return lines === '' ? `${part} has logged nothing.` : `The end of ${log}:\n${lines}`
}

function onlyChild(pid: number): number | undefined {
  const children = readIfThere(`/proc/${pid}/task/${pid}/children`)?.trim()
  return children ? Number(children.split(' ')[0]) : undefined
}

function writePid(folder: string, part: string, pid: number): void {
  writeFileSync(join(folder, 'pid', part), String(pid))
}

function readIfThere(path: string): string | undefined {
  if (!existsSync(path)) return undefined
  try {
    return readFileSync(path, 'utf8')
  } catch (error) {
    if (['ENOENT', 'ESRCH'].includes((error as NodeJS.ErrnoException).code ?? '')) return undefined
    throw error
  }
}
