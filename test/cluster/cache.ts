import { createHash, randomBytes } from 'node:crypto'
import { existsSync, linkSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { labError } from '../lab/processes.ts'

/** Hears what is being done now. */
export type Log = (step: string) => void

export interface CacheEntry {
  /** What it is, as in the names of its folder and its messages. */
  kind: string
  /** Everything that it is made from: another value makes another entry. */
  from: readonly (string | Buffer)[]
  /** Fills the empty folder. */
  make: (folder: string) => Promise<void>
}

const lockDeadlineMs = 30 * 60_000

/** Outside the clone, so that a fresh clone need not build anything again. */
export function cacheFolder(env: NodeJS.ProcessEnv = process.env): string {
  const base = env.XDG_CACHE_HOME || join(homedir(), '.cache')
  return env.EDGEMESH_CLUSTER_CACHE || join(base, 'edgemesh-sidecar', 'cluster')
}

/** Digest of an entry's inputs. Each goes in with its length, so that no two lists of them look the same. */
export function keyOf(from: readonly (string | Buffer)[]): string {
  const hash = createHash('sha256').update(process.arch)
  for (const part of from) hash.update(`\n${Buffer.byteLength(part)}:`).update(part)
  return hash.digest('hex').slice(0, 16)
}

/** The folder of an entry, which is made first where it is missing. Of two that make the same one, one waits. */
export async function cached({ kind, from, make }: CacheEntry, log: Log): Promise<string> {
  const cache = cacheFolder()
  const folder = join(cache, `${kind}-${keyOf(from)}`)
  if (existsSync(folder)) return folder
  mkdirSync(cache, { recursive: true })
  const unlock = await lock(`${folder}.lock`, () => log(`waiting for another process that makes ${kind}`))
  const work = `${folder}.${randomBytes(4).toString('hex')}.new`
  try {
    if (existsSync(folder)) return folder
    mkdirSync(work)
    await make(work)
    renameSync(work, folder) // whole or not at all, whatever ends us
    return folder
  } finally {
    rmSync(work, { recursive: true, force: true })
    unlock()
  }
}

/** A file that names the process that holds it; the lock of a dead process is taken over. */
async function lock(path: string, onWait: () => void): Promise<() => void> {
  const own = `${path}.${randomBytes(4).toString('hex')}`
  writeFileSync(own, String(process.pid))
  try {
    for (let waited = 0; ; waited += 250) {
      if (linked(own, path)) return () => rmSync(path, { force: true })
      const holder = holderOf(path)
      if (holder !== undefined && !existsSync(`/proc/${holder}`)) rmSync(path, { force: true })
      else {
        if (waited === 0) onWait()
        if (waited > lockDeadlineMs)
          throw labError(
            `Cannot get ${path}: process ${holder} has held it for half an hour. End it, or remove the file.`,
          )
        await delay(250)
      }
    }
  } finally {
    rmSync(own, { force: true })
  }
}

/** link(2) makes the lock with its content in one step, or fails. */
function linked(own: string, path: string): boolean {
  try {
    linkSync(own, path)
    return true
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') return false
    throw error
  }
}

function holderOf(path: string): number | undefined {
  try {
    return Number(readFileSync(path, 'utf8'))
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined // let go just now
    throw error
  }
}
