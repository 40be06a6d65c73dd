import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { deleteNamespaces, namespacesOf } from '../lab/network.ts'
import { labError } from '../lab/processes.ts'
import type { Artifacts } from './build.ts'
import { removeCgroups } from './cgroups.ts'
import { cgroupIn, clustersFolder, namespaceIn, nodes, places } from './layout.ts'

/** What is known of a cluster on disk, from before the first thing is made until after the last is gone. */
export interface State {
  name: string
  /** Whose end makes it a leftover; none for a cluster that is there until somebody takes it down. */
  owner: { pid: number; startTime: string } | undefined
  artifacts: Artifacts
}

export function folderOf(name: string): string {
  return join(clustersFolder, name)
}

/** Names of all clusters that are there, or of which something is left. */
export function clusterNames(): string[] {
  if (!existsSync(clustersFolder)) return []
  return readdirSync(clustersFolder).filter((name) => !name.includes('.'))
}

export function readState(name: string): State {
  try {
    return JSON.parse(readFileSync(join(folderOf(name), 'state.json'), 'utf8')) as State
  } catch (error) {
    throw labError(
      `Cannot use cluster ${name}: it is not there. Make one with "npm run cluster -- up".`,
      error,
    )
  }
}

/** Takes the name. The folder appears whole, so of two clusters of one name the second fails here. */
export function createState(name: string, artifacts: Artifacts, keep: boolean): State {
  const owner = keep ? undefined : { pid: process.pid, startTime: startTimeOf(process.pid) ?? '' }
  const state = { name, owner, artifacts }
  const half = join(clustersFolder, `${name}.${process.pid}.new`)
  mkdirSync(clustersFolder, { recursive: true, mode: 0o700 })
  for (const part of ['log', 'pid']) mkdirSync(join(half, part), { recursive: true })
  writeFileSync(join(half, 'state.json'), JSON.stringify(state, undefined, 2))
  try {
    renameSync(half, folderOf(name))
  } catch (error) {
    rmSync(half, { recursive: true, force: true })
    throw labError(`Cannot make cluster ${name}: it is there. Take it down first.`, error)
  }
  return state
}

/** Ends and removes everything of a cluster, also of half a one. */
export async function removeCluster(name: string): Promise<void> {
  await removeCgroups([...nodes, 'control' as const].map((part) => cgroupIn(name, part)))
  const own = places.map((place) => namespaceIn(name, place))
  await deleteNamespaces((await namespacesOf(undefined)).filter((namespace) => own.includes(namespace)))
  rmSync(folderOf(name), { recursive: true, force: true })
}

/** Clusters whose owner has ended without taking them down. */
export function leftovers(): string[] {
  return clusterNames().filter((name) => {
    const file = join(folderOf(name), 'state.json')
    if (!existsSync(file)) return false // on its way out
    const { owner } = JSON.parse(readFileSync(file, 'utf8')) as State
    return owner !== undefined && startTimeOf(owner.pid) !== owner.startTime
  })
}

/** Tells a process from a later one of the same pid: field 22 of proc_pid_stat(5). */
function startTimeOf(pid: number): string | undefined {
  const file = `/proc/${pid}/stat`
  if (!existsSync(file)) return undefined
  const stat = readFileSync(file, 'utf8')
  return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19]
}
