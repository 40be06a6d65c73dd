import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmdirSync,
  writeFileSync,
} from 'node:fs'
import { basename, join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { labError } from '../lab/processes.ts'

const root = '/sys/fs/cgroup'
const emptyDeadlineMs = 15_000

/** Makes the cgroup in every hierarchy; the kubelet refuses a root that one of them lacks. */
export function makeCgroup(name: string): void {
  const all = hierarchies()
  if (all.length === 0)
    throw labError(
      `Cannot make cgroups for the cluster: ${root} has no version 1 hierarchy. Run it where cgroups v1 are mounted.`,
    )
  for (const hierarchy of all) {
    const folder = join(hierarchy, name)
    mkdirSync(folder)
    // A cpuset without processors and memory takes no process.
    for (const file of ['cpuset.cpus', 'cpuset.mems'])
      if (existsSync(join(folder, file)))
        writeFileSync(join(folder, file), readFileSync(join(hierarchy, file)))
  }
}

/** The command line that runs `argv` inside the cgroup, with as many files open as may be. */
export function commandInCgroup(name: string, argv: readonly string[]): string[] {
  const enter = `for tasks in ${root}/*/${name}/cgroup.procs; do echo $$ > $tasks; done`
  return ['sh', '-c', `${enter}; ulimit -n ${mostOpenFiles()}; exec "$@"`, 'sh', ...argv]
}

/** Kills every process of the cgroups, also below them, and removes them. */
export async function removeCgroups(names: readonly string[]): Promise<void> {
  const folders = hierarchies().flatMap((hierarchy) => names.map((name) => join(hierarchy, name)))
  for (const until = Date.now() + emptyDeadlineMs; ; await delay(20)) {
    const pids = new Set(folders.flatMap(processesIn))
    for (const pid of pids) kill(pid)
    if (pids.size === 0 && folders.every(removed)) return
    if (Date.now() > until)
      throw labError(
        `Cannot remove the cgroups ${names.join(', ')}: ${pids.size === 0 ? 'they are busy' : `processes ${[...pids].join(', ')} do not end`}.`,
      )
  }
}

/** The hard limit; containerd and the API server need more than the usual 1,024. */
function mostOpenFiles(): string {
  return /^Max open files +\S+ +(\S+)/m.exec(readFileSync('/proc/self/limits', 'utf8'))?.[1] ?? 'unlimited'
}

function hierarchies(): string[] {
  if (!existsSync(root)) return []
  // Links such as cpu -> cpu,cpuacct lead to the same hierarchy; "unified" is version 2.
  const all = readdirSync(root).map((name) => realpathSync(join(root, name)))
  return [...new Set(all)].filter((path) => existsSync(join(path, 'tasks')) && basename(path) !== 'unified')
}

function processesIn(folder: string): number[] {
  return foldersIn(folder).flatMap((each) => {
    try {
      return readFileSync(join(each, 'cgroup.procs'), 'utf8').split('\n').filter(Boolean).map(Number)
    } catch (error) {
      return ignoreGone(error, [])
    }
  })
}

/** Whether the cgroup is gone with all below it; a cgroup that has just become empty may be busy for a moment. */
function removed(folder: string): boolean {
  for (const each of foldersIn(folder).reverse()) {
    try {
      rmdirSync(each)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'EBUSY') return false
      ignoreGone(error, undefined)
    }
  }
  return true
}

/** The folder and all below it, each before those in it; none if it is not there. */
function foldersIn(folder: string): string[] {
  try {
    const below = readdirSync(folder, { withFileTypes: true }).filter((entry) => entry.isDirectory())
    return [folder, ...below.flatMap((entry) => foldersIn(join(folder, entry.name)))]
  } catch (error) {
    return ignoreGone(error, [])
  }
}

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch (error) {
    ignoreGone(error, undefined)
  }
}

/** Containers end by themselves meanwhile: what is gone needs no more work (ENODEV is how cgroups say it). */
function ignoreGone<T>(error: unknown, instead: T): T {
  if (['ENOENT', 'ENODEV', 'ESRCH'].includes((error as NodeJS.ErrnoException).code ?? '')) return instead
  throw error
}
