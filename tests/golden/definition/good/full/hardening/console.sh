#!/bin/sh
usermod -p "$PASSWORD" odin
