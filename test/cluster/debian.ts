import { chmodSync, mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { labError } from '../lab/processes.ts'
import { mustRun, type Output, run } from '../lab/shell.ts'
import { cached, type Log } from './cache.ts'

const packages = ['containerd', 'runc', 'containernetworking-plugins', 'busybox-static', 'etcd-server']
const deadlineMs = 10 * 60_000

/** A folder with the files of the packages, as they would lie under /. Nothing of it is ever installed. */
export async function debianRoot(log: Log): Promise<string> {
  const from = [readFileSync('/etc/os-release'), ...packages]
  return cached({ kind: 'debian', from, make: (folder) => unpack(folder, log) }, log)
}

async function unpack(folder: string, log: Log): Promise<void> {
  const debs = join(folder, 'debs')
  mkdirSync(debs)
  chmodSync(debs, 0o777) // apt-get downloads as its own user, where it can
  log(`fetching ${packages.join(', ')}`)
  let fetched = await fetch(debs)
  if (fetched.code !== 0) {
    log('apt-get update: the package lists are empty or old')
    await mustRun(['apt-get', 'update', '-q'], { timeoutMs: deadlineMs })
    fetched = await fetch(debs)
  }
  if (fetched.code !== 0)
    throw labError(`Cannot fetch Debian packages for the cluster: apt-get says: ${fetched.stderr.trim()}`)
  for (const deb of readdirSync(debs)) await mustRun(['dpkg', '-x', join(debs, deb), folder])
  rmSync(debs, { recursive: true })
}

function fetch(folder: string): Promise<Output> {
  return run(['apt-get', 'download', '-q', ...packages], { cwd: folder, timeoutMs: deadlineMs }).catch(
    (error: unknown) => {
      throw labError(
        'Cannot fetch packages for the cluster: there is no apt-get. Run it on Debian or Ubuntu.',
        error,
      )
    },
  )
}
