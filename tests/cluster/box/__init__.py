"""A Slurm cluster of several nodes on one Linux machine, made of namespaces.

    make cluster-up NODES=4
    make cluster-shell
    make cluster-down

The programs are Debian's own slurmctld, slurmd and munged; a node is a set of namespaces with a
host name, an address, a network link, /tmp and /dev/shm of its own.

settings: what a box is, where its files are. state: the folder with them. slurm_conf: Slurm's
files. supervisor: the process that holds it all. node: a node's first process. mounts, cgroups,
namespaces, syscalls: what nodes are made of. enter: run something in a node. cluster: the verbs.
requirements, host: what this machine lacks and has.
"""
