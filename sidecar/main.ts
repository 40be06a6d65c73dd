import { EdgeMeshError, sentenceOf } from '#shared/errors.ts'
import { giveBackGarbage } from '#shared/garbage.ts'
import { Lifecycle } from '#shared/lifecycle.ts'
import { createLogger } from '#shared/log.ts'
import { giveBackMappedPages } from '#shared/mapped-pages.ts'
import { readConfig } from './config.ts'

/** So long after it serves, in ms, a sidecar that starts has its sessions, catalogue and certificate. */
const settledMs = 2_000

const help = `EdgeMesh sidecar: carries a pod's service traffic across sites.

Usage: node sidecar/main.ts COMMAND [OPTIONS]

Commands:
  run        the sidecar itself; set up by its environment (POD_UID, POD_NAME, POD_NAMESPACE, POD_IPS,
             EDGEMESH_SERVER and others: README.md, "Settings")
  init       writes the EDGE-MESH rules into this network namespace, verifies them and probes the kernel
  cleanup    removes the rules again
  version    prints the version

init and cleanup explain their options with --help.`

/** Loaded by command: the sidecar's memory is paid in every pod, so it loads nothing that only init needs. */
async function main([command = '--help', ...rest]: string[]): Promise<number | undefined> {
  switch (command) {
    case 'run':
      return run(rest)
    case 'init':
    case 'cleanup': {
      const { runInit } = await import('./interception/init-command.ts')
      return runInit([command, ...rest], process.env)
    }
    case 'version':
    case '--version':
      console.log((await import('#shared/version.ts')).version)
      return 0
    case 'help':
    case '--help':
    case '-h':
      console.log(help)
      return 0
    default:
      console.error(`Unknown command "${command}".\n\n${help}`)
      return 2
  }
}

/** Returns an exit code when it cannot start; otherwise the process lives until it is told to stop. */
async function run(rest: string[]): Promise<number | undefined> {
  if (rest.length > 0) {
    throw new EdgeMeshError('bad-config', `Cannot start: run takes no arguments, got "${rest.join(' ')}".`)
  }
  const config = readConfig(process.env)
  const log = createLogger('sidecar', config.logLevel)
  const lifecycle = new Lifecycle(log)
  const stop = async (why: string) => {
    log.info({ why }, 'stopping')
    await lifecycle.stop()
    process.exit(0)
  }
  process.once('SIGTERM', () => void stop('SIGTERM'))
  process.once('SIGINT', () => void stop('SIGINT'))
  process.on('uncaughtException', (error) => {
    log.error({ error: sentenceOf(error), stack: error.stack }, 'a defect: the sidecar restarts')
    process.exit(70)
  })
  const { startSidecar } = await import('./sidecar.ts')
  await startSidecar(config, lifecycle, log)
  const giveBack = () => {
    giveBackGarbage()
    giveBackMappedPages()
  }
  setTimeout(giveBack, settledMs).unref()
  return undefined
}

try {
  const code = await main(process.argv.slice(2))
  if (code !== undefined) process.exit(code)
} catch (error) {
  console.error(sentenceOf(error))
  process.exit(1)
}
